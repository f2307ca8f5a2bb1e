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
	"k8s.io/client-go/util/flowcontrol"
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
	// strangers is how many reviews a second tokens cost that were not good before, strangersBurst how many at once: any
	// process of the host may call, and each token that it makes up would be a question to the API server.
	strangers      = 5
	strangersBurst = 20
	// unsureFor is how long a lasting call goes on while nobody can say whether its token is still in force.
	unsureFor = 10 * time.Minute
)

var (
	errNoToken = status.Error(codes.Unauthenticated, "no bearer token (kubectl hubble brings one)")
	errOften   = status.Error(codes.ResourceExhausted, "too many unknown tokens: ask again in a moment")
	errOver    = status.Error(codes.Unauthenticated, "the token that the call began with is not in force any more: call again with a new one")
)

// Authenticator lets in callers who hold a token of one ServiceAccount, made for us. Who may have one made says who may
// read flows: that is the API server's to judge.
type Authenticator struct {
	reviews  Reviews
	user     string
	audience string
	// strangers lets reviews of unknown tokens pass.
	strangers flowcontrol.PassiveRateLimiter
	// age and unsure are verdictAge and unsureFor; tests have less patience.
	age, unsure time.Duration

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
	return &Authenticator{
		reviews: reviews, user: user, audience: audience, age: verdictAge, unsure: unsureFor,
		strangers: flowcontrol.NewTokenBucketPassiveRateLimiter(strangers, strangersBurst), known: map[[sha256.Size]byte]*judgement{},
	}
}

func (a *Authenticator) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := a.check(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (a *Authenticator) stream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	token, err := bearerOf(s.Context())
	if err != nil {
		return err
	}
	if err := a.judge(s.Context(), token); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(s.Context())
	defer end(nil)
	go func() { end(a.watch(ctx, token)) }()
	err = next(srv, &watchedStream{ServerStream: s, ctx: ctx})
	if ctx.Err() != nil && s.Context().Err() == nil {
		return context.Cause(ctx)
	}
	return err
}

// watch judges the token of a lasting call again and again. It returns why the call must end, or nil when it has ended.
func (a *Authenticator) watch(ctx context.Context, token string) error {
	tick := time.NewTicker(a.age)
	defer tick.Stop()
	sure := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := a.judge(ctx, token)
		switch status.Code(err) {
		case codes.OK:
			sure = time.Now()
		case codes.Unauthenticated, codes.PermissionDenied:
			return errOver
		default: // nobody could say
			if time.Since(sure) > a.unsure && ctx.Err() == nil {
				return err
			}
		}
	}
}

// watchedStream ends when its token does: what is sent after that fails, and who waits is woken.
type watchedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *watchedStream) Context() context.Context { return s.ctx }

func (s *watchedStream) SendMsg(m any) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return s.ServerStream.SendMsg(m)
}

// check finds the bearer token of a call and asks whose it is.
func (a *Authenticator) check(ctx context.Context) error {
	token, err := bearerOf(ctx)
	if err != nil {
		return err
	}
	return a.judge(ctx, token)
}

func bearerOf(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return "", errNoToken
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" || len(token) > maxTokenSize {
		return "", errNoToken
	}
	return token, nil
}

// judge asks once for a token, whoever waits for the answer. Tokens that were good a while ago are asked for whatever
// strangers come with.
func (a *Authenticator) judge(ctx context.Context, token string) error {
	key := sha256.Sum256([]byte(token))
	a.mu.Lock()
	j, ok := a.known[key]
	if now := time.Now(); !ok || j.over(now) {
		if (!ok || !j.good()) && !a.strangers.TryAccept() {
			a.mu.Unlock()
			return errOften
		}
		a.forget(now)
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

// good tells whether the API server has said yes.
func (j *judgement) good() bool {
	select {
	case <-j.done:
		return j.err == nil
	default:
		return false
	}
}

// forget makes room: what is over goes, a good one when nobody has asked for it a while longer, and everything where
// that was not enough.
func (a *Authenticator) forget(now time.Time) {
	for key, j := range a.known {
		if j.over(now) && (!j.good() || j.over(now.Add(-a.age))) {
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
		j.until = time.Now().Add(a.age)
	}
}
