// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // as kubectl: every way of signing in
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
)

const (
	// Namespace holds the agent and the operator; the agent's Lease fixes it.
	Namespace = v1alpha1.AgentLeaseNamespace
	// AgentName is the DaemonSet, OperatorName the Deployment; their pods carry it as LabelName.
	AgentName    = "cilium-agent"
	OperatorName = "cilium-operator"
	LabelName    = "app.kubernetes.io/name"
	// AgentContainer runs the agent, InspectContainer waits beside it for people.
	AgentContainer   = "agent"
	InspectContainer = "inspect"
)

// ErrNoAgent means that no agent pod runs on a node, so that nobody can be asked there.
var ErrNoAgent = errors.New("no agent pod")

// Cluster is a connection with the caller's rights.
type Cluster struct {
	client.Client
	config *rest.Config
	// core speaks to pods and their subresources.
	core rest.Interface
	// Context is the kubeconfig's context in use, for asking before something is removed.
	Context string
}

// Connect takes the flags as kubectl does. It does not speak to the API server yet.
func Connect(flags *genericclioptions.ConfigFlags) (*Cluster, error) {
	if err := checkKubeconfig(flags); err != nil {
		return nil, err
	}
	config, err := flags.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, authenticationv1.AddToScheme, coordinationv1.AddToScheme, rbacv1.AddToScheme, v1alpha1.AddToScheme,
		networkingv1.AddToScheme, discoveryv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	mapper, err := flags.ToRESTMapper()
	if err != nil {
		return nil, err
	}
	c, err := client.New(config, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		return nil, err
	}
	coreConfig := rest.CopyConfig(config)
	coreConfig.APIPath, coreConfig.GroupVersion = "/api", &corev1.SchemeGroupVersion
	coreConfig.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	core, err := rest.RESTClientFor(coreConfig)
	if err != nil {
		return nil, err
	}
	raw, err := flags.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return nil, err
	}
	name := raw.CurrentContext
	if flags.Context != nil && *flags.Context != "" {
		name = *flags.Context
	}
	return &Cluster{Client: c, config: config, core: core, Context: name}, nil
}

// AgentPods are the agent's pods, of one node or of all with "".
func (c *Cluster) AgentPods(ctx context.Context, node string) ([]corev1.Pod, error) {
	var pods corev1.PodList
	opts := []client.ListOption{client.InNamespace(Namespace), client.MatchingLabels{LabelName: AgentName}}
	if node != "" {
		opts = append(opts, client.MatchingFields{"spec.nodeName": node})
	}
	if err := c.List(ctx, &pods, opts...); err != nil {
		return nil, fmt.Errorf("list agent pods: %w", err)
	}
	return pods.Items, nil
}

// AgentPod is the agent's pod on a node whose inspect container runs. It returns ErrNoAgent if there is none, and the
// API server's answer if there is no such node.
func (c *Cluster) AgentPod(ctx context.Context, node string) (*corev1.Pod, error) {
	pods, err := c.AgentPods(ctx, node)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if pods[i].DeletionTimestamp == nil && running(&pods[i], InspectContainer) {
			return &pods[i], nil
		}
	}
	if err := c.Get(ctx, client.ObjectKey{Name: node}, &corev1.Node{}); err != nil {
		return nil, err
	}
	if len(pods) > 0 {
		return nil, fmt.Errorf("node/%s: %w can be asked: container %s of pod/%s does not run (kubectl -n %s describe pod %s)",
			node, ErrNoAgent, InspectContainer, pods[0].Name, Namespace, pods[0].Name)
	}
	return nil, fmt.Errorf("node/%s: %w in namespace %s (kubectl -n %s get daemonset %s)", node, ErrNoAgent, Namespace, Namespace, AgentName)
}

func running(pod *corev1.Pod, container string) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name == container {
			return s.State.Running != nil
		}
	}
	return false
}

// Exec runs a command in a container of the agent and copies what it writes. It returns when the command ends or ctx is
// done.
func (c *Cluster) Exec(ctx context.Context, pod, container string, command []string, stdout, stderr io.Writer) error {
	return c.ExecIn(ctx, Namespace, pod, container, command, stdout, stderr)
}

// ExecIn is Exec for any namespace.
func (c *Cluster) ExecIn(ctx context.Context, namespace, pod, container string, command []string, stdout, stderr io.Writer) error {
	url := c.core.Post().Resource("pods").Name(pod).Namespace(namespace).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: command, Stdout: true, Stderr: true,
		}, runtime.NewParameterCodec(c.Scheme())).URL()
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", url)
	if err != nil {
		return err
	}
	socket, err := remotecommand.NewWebSocketExecutor(c.config, "GET", url.String())
	if err != nil {
		return err
	}
	exec, err := remotecommand.NewFallbackExecutor(socket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return err
	}
	return exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
}

// SafeWriter passes on what is printable, and newlines, and writes the rest as escapes: for text from a node.
type SafeWriter struct{ W io.Writer }

// Write never splits what it was given, but for lines.
func (s SafeWriter) Write(b []byte) (int, error) {
	out := make([]byte, 0, len(b))
	start := 0
	for i, c := range b {
		if c == '\n' {
			out = append(append(out, flow.Safe(string(b[start:i]))...), '\n')
			start = i + 1
		}
	}
	out = append(out, flow.Safe(string(b[start:]))...)
	if _, err := s.W.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Logs opens what a container has written.
func (c *Cluster) Logs(ctx context.Context, namespace, pod string, o *corev1.PodLogOptions) (io.ReadCloser, error) {
	return c.core.Get().Resource("pods").Name(pod).Namespace(namespace).SubResource("log").
		VersionedParams(o, runtime.NewParameterCodec(c.Scheme())).Stream(ctx)
}

// ServerVersion is what the API server says of itself.
func (c *Cluster) ServerVersion(ctx context.Context) (string, error) {
	var info struct {
		GitVersion string `json:"gitVersion"`
	}
	text, err := c.core.Get().AbsPath("/version").DoRaw(ctx)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(text, &info); err != nil {
		return "", fmt.Errorf("/version: %w", err)
	}
	return info.GitVersion, nil
}
