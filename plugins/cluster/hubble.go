// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

const (
	// tokenLife is how long a token for agents is asked for; the API server makes none for less.
	tokenLife = 10 * time.Minute
	// tokenSpare is how much life a token must have left to be used again.
	tokenSpare = 2 * time.Minute
	// maxFlow bounds what one message of an agent may make us hold, in bytes.
	maxFlow = 1 << 20
)

// Hubble speaks to the agents' Hubble servers. It may be used by several goroutines.
type Hubble struct {
	cluster *Cluster

	mu    sync.Mutex
	token string
	until time.Time
}

// Hubble gives access to flows, with a token that the API server makes for whoever may have one.
func (c *Cluster) Hubble() *Hubble { return &Hubble{cluster: c} }

// Node is the connection to one agent. Close it.
type Node struct {
	observerpb.ObserverClient
	Health healthpb.HealthClient
	conn   *grpc.ClientConn
}

// Close ends the connection.
func (n *Node) Close() error { return n.conn.Close() }

// Node connects to the agent in a pod when it is first asked.
func (h *Hubble) Node(pod *corev1.Pod) (*Node, error) {
	port, err := hubblePort(pod)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+pod.Name,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return h.cluster.Dial(ctx, pod.Name, port)
		}),
		// What runs inside the port-forward is TLS to the API server and to kubelet, then the node's loopback.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithPerRPCCredentials(h),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxFlow)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, err
	}
	return &Node{ObserverClient: observerpb.NewObserverClient(conn), Health: healthpb.NewHealthClient(conn), conn: conn}, nil
}

// hubblePort is where the agent of a pod was told to serve flows: by its argument, else by its environment, as the agent
// itself reads them.
func hubblePort(pod *corev1.Pod) (int, error) {
	const flag = "--hubble-address"
	address := ""
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if c.Name != AgentContainer {
			continue
		}
		for _, e := range c.Env {
			if e.Name == "HUBBLE_ADDRESS" {
				address = e.Value
			}
		}
		words := append(slices.Clone(c.Command), c.Args...)
		for i, w := range words {
			if value, ok := strings.CutPrefix(w, flag+"="); ok {
				address = value
			} else if w == flag && i+1 < len(words) {
				address = words[i+1]
			}
		}
	}
	switch address {
	case "":
		return v1alpha1.HubblePort, nil
	case "0":
		return 0, fmt.Errorf("the agent in pod/%s is told to serve no flows (%s=0)", pod.Name, flag)
	}
	_, text, err := net.SplitHostPort(address)
	port, bad := strconv.ParseUint(text, 10, 16)
	if err != nil || bad != nil || port == 0 {
		return 0, fmt.Errorf("the agent in pod/%s has %s=%s, which names no port", pod.Name, flag, address)
	}
	return int(port), nil
}

// Token asks for a token, or gives the last one while it lives. Ask before many calls at once: its error says what the
// caller may not do.
func (h *Hubble) Token(ctx context.Context) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Until(h.until) > tokenSpare {
		return h.token, nil
	}
	seconds := int64(tokenLife / time.Second)
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{v1alpha1.HubbleAudience}, ExpirationSeconds: &seconds,
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: v1alpha1.HubbleServiceAccount}}
	if err := h.cluster.SubResource("token").Create(ctx, account, req); err != nil {
		return "", fmt.Errorf("a token to read flows with (the role hubble-reader allows it): %w", err)
	}
	h.token, h.until = req.Status.Token, req.Status.ExpirationTimestamp.Time
	return h.token, nil
}

// GetRequestMetadata brings the token along with every call.
func (h *Hubble) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := h.Token(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity is false: the port-forward around the call is what secures it.
func (h *Hubble) RequireTransportSecurity() bool { return false }
