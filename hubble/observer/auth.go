// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reviews asks the API server whose a token is; client-go's authentication/v1 client is one.
type Reviews interface {
	Create(context.Context, *authenticationv1.TokenReview, metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

const (
	// verdictAge is how long what the API server said of a token is believed.
	verdictAge = time.Minute
	// refusalAge is shorter: a token may come into force.
	refusalAge = 5 * time.Second
	// maxTokens bounds the memory of verdicts, maxTokenSize a token, in bytes.
	maxTokens    = 256
	maxTokenSize = 16 << 10
	// reviewTimeout bounds how long a caller waits for the API server.
	reviewTimeout = 10 * time.Second
)

// Authenticator lets in callers who hold a token of one ServiceAccount, made for us. Who may have one made says who may
// read flows: that is the API server's to judge.
type Authenticator struct {
	reviews  Reviews
	user     string
	audience string

	mu    sync.Mutex
	known map[[sha256.Size]byte]*judgement
}

// judgement is what the API server said of a token; done is closed when it has.
type judgement struct {
	done  chan struct{}
	until time.Time
	err   error
}

// NewAuthenticator makes one for tokens of user, such as system:serviceaccount:NAMESPACE:NAME, with the audience.
func NewAuthenticator(reviews Reviews, user, audience string) *Authenticator {
	return &Authenticator{reviews: reviews, user: user, audience: audience, known: map[[sha256.Size]byte]*judgement{}}
}

func (a *Authenticator) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := a.check(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (a *Authenticator) stream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := a.check(s.Context()); err != nil {
		return err
	}
	return next(srv, s)
}

// check finds the bearer token of a call and asks whose it is.
func (a *Authenticator) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return status.Error(codes.Unauthenticated, "no bearer token (kubectl hubble brings one)")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" || len(token) > maxTokenSize {
		return status.Error(codes.Unauthenticated, "no bearer token (kubectl hubble brings one)")
	}
	return a.judge(ctx, token)
}

// judge asks once for a token, whoever waits for the answer.
func (a *Authenticator) judge(ctx context.Context, token string) error {
	key := sha256.Sum256([]byte(token))
	a.mu.Lock()
	j, ok := a.known[key]
	if !ok || j.over(time.Now()) {
		a.forget()
		j = &judgement{done: make(chan struct{})}
		a.known[key] = j
		go a.review(context.WithoutCancel(ctx), token, j)
	}
	a.mu.Unlock()
	select {
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-j.done:
		return j.err
	}
}

// over tells whether a judgement is too old to be believed; one that is awaited is not.
func (j *judgement) over(now time.Time) bool {
	select {
	case <-j.done:
		return now.After(j.until)
	default:
		return false
	}
}

// forget makes room: what is over goes, and everything where that was not enough.
func (a *Authenticator) forget() {
	now := time.Now()
	for key, j := range a.known {
		if j.over(now) {
			delete(a.known, key)
		}
	}
	if len(a.known) >= maxTokens {
		clear(a.known)
	}
}

func (a *Authenticator) review(ctx context.Context, token string, j *judgement) {
	defer close(j.done)
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	got, err := a.reviews.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{a.audience}},
	}, metav1.CreateOptions{})
	j.until = time.Now().Add(refusalAge)
	switch {
	case err != nil:
		j.until = time.Time{} // said nothing about the token
		j.err = status.Error(codes.Unavailable, "the API server could not be asked whose the token is: "+err.Error())
	case !got.Status.Authenticated || !slices.Contains(got.Status.Audiences, a.audience):
		j.err = status.Error(codes.Unauthenticated, "the token is not in force or not made for "+a.audience)
	case got.Status.User.Username != a.user:
		j.err = status.Error(codes.PermissionDenied, "the token is not one of "+a.user)
	default:
		j.until = time.Now().Add(verdictAge)
	}
}
