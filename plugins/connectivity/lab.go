// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Names of the pods. The asker asks; its neighbour and the stranger of the other namespace do too, where a policy
// tells them apart.
const (
	asker       = "client"
	neighbour   = "neighbour"
	stranger    = "stranger"
	serverSame  = "server-same-node"
	serverOther = "server-other-node"
	hostOwn     = "host-own"
	hostOther   = "host-other"
	service     = "server"
	container   = "probe"
)

const (
	// serverPort is named namedPort in the servers, secondPort is not.
	serverPort uint16 = 8080
	secondPort uint16 = 8081
	namedPort         = "echo"
	// roleLabel says what a pod is, teamLabel marks the stranger's namespace.
	roleLabel = "connectivity-test/role"
	teamLabel = "connectivity-test/team"
	// nonRoot is the user of pods that need no privilege.
	nonRoot int64 = 65532
)

// lab is what a run has deployed.
type lab struct {
	namespace, other string
	image            string
	// nodes are two, or one for what a single node can show.
	nodes    []string
	hostPort uint16
	pods     map[string]podAddresses
	service  podAddresses
	families []int
}

// podAddresses are addresses by family, 4 and 6.
type podAddresses map[int]netip.Addr

func addressesOf(texts []string) podAddresses {
	all := podAddresses{}
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			if _, has := all[family(a)]; !has {
				all[family(a)] = a
			}
		}
	}
	return all
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

func (l *lab) single() bool { return len(l.nodes) == 1 }

// servers that exist.
func (l *lab) servers() []string {
	if l.single() {
		return []string{serverSame}
	}
	return []string{serverSame, serverOther}
}

// namespaceOf is where a pod of the lab lives.
func (l *lab) namespaceOf(pod string) string {
	if pod == stranger {
		return l.other
	}
	return l.namespace
}

func (l *lab) namespaces() []*corev1.Namespace {
	make := func(name, team string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			teamLabel: team, "app.kubernetes.io/part-of": "kube-cilium", "app.kubernetes.io/component": "connectivity-test",
			// Two pods speak for their hosts; the others would pass the strictest level.
			"pod-security.kubernetes.io/enforce": "privileged",
		}}}
	}
	return []*corev1.Namespace{make(l.namespace, "own"), make(l.other, "other")}
}

// objects are pods and the Service, whose pods are on both nodes.
func (l *lab) objects() ([]*corev1.Pod, *corev1.Service) {
	near, far := l.nodes[0], l.nodes[len(l.nodes)-1]
	pods := []*corev1.Pod{
		l.pod(asker, near, serverPort), l.pod(neighbour, near, serverPort), l.pod(stranger, far, serverPort),
		l.pod(serverSame, near, serverPort, secondPort), l.hostPod(hostOwn, near),
	}
	if !l.single() {
		pods = append(pods, l.pod(serverOther, far, serverPort, secondPort), l.hostPod(hostOther, far))
	}
	both := corev1.IPFamilyPolicyPreferDualStack
	return pods, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: service},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: &both, Selector: map[string]string{roleLabel: "server"},
			Ports: []corev1.ServicePort{
				{Name: "tcp", Port: int32(serverPort), TargetPort: intstr.FromInt32(int32(serverPort)), Protocol: corev1.ProtocolTCP},
				{Name: "udp", Port: int32(serverPort), TargetPort: intstr.FromInt32(int32(serverPort)), Protocol: corev1.ProtocolUDP},
			},
		},
	}
}

func role(name string) string {
	if name == serverSame || name == serverOther {
		return "server"
	}
	return name
}

func (l *lab) pod(name, node string, ports ...uint16) *corev1.Pod {
	args := []string{"probe", "serve"}
	for _, p := range ports {
		args = append(args, "--port="+strconv.Itoa(int(p)))
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespaceOf(name), Name: name, Labels: map[string]string{roleLabel: role(name)}},
		Spec: corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: new(int64), RestartPolicy: corev1.RestartPolicyAlways,
			AutomountServiceAccountToken: new(bool), EnableServiceLinks: new(bool),
			SecurityContext: &corev1.PodSecurityContext{
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				// Everybody may ping: one of the sysctls that every cluster allows.
				Sysctls: []corev1.Sysctl{{Name: "net.ipv4.ping_group_range", Value: "0 2147483647"}},
			},
			Containers: []corev1.Container{{
				Name: container, Image: l.image, ImagePullPolicy: corev1.PullIfNotPresent, Command: append([]string{"cilium-agent"}, args...),
				SecurityContext: &corev1.SecurityContext{
					RunAsUser: ptr(nonRoot), RunAsGroup: ptr(nonRoot), RunAsNonRoot: ptr(true), AllowPrivilegeEscalation: new(bool),
					ReadOnlyRootFilesystem: ptr(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(ports[0]))}},
					PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: 3,
				},
				TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
			}},
		},
	}
	if role(name) == "server" {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{
			{Name: namedPort, ContainerPort: int32(serverPort), Protocol: corev1.ProtocolTCP},
			{Name: namedPort + "-udp", ContainerPort: int32(serverPort), Protocol: corev1.ProtocolUDP},
		}
	}
	return p
}

// hostPod speaks and answers as its host.
func (l *lab) hostPod(name, node string) *corev1.Pod {
	p := l.pod(name, node, l.hostPort)
	p.Spec.HostNetwork = true
	p.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	p.Spec.SecurityContext.Sysctls = nil
	c := p.Spec.Containers[0].SecurityContext
	c.RunAsUser, c.RunAsGroup, c.RunAsNonRoot = new(int64), new(int64), nil
	c.Capabilities.Add = []corev1.Capability{"NET_RAW"} // nobody may ping on a host without it
	return p
}

// settleFamilies keeps the families that every pod has.
func (l *lab) settleFamilies() {
	for _, f := range []int{4, 6} {
		everybody := true
		for _, p := range l.pods {
			_, has := p[f]
			everybody = everybody && has
		}
		if everybody {
			l.families = append(l.families, f)
		}
	}
}

// chooseNodes are the first two, by name, that take pods.
func chooseNodes(all []corev1.Node) []string {
	var names []string
	for i := range all {
		if takesPods(&all[i]) {
			names = append(names, all[i].Name)
		}
	}
	slices.SortFunc(names, cmp.Compare[string])
	return names[:min(len(names), 2)]
}

func takesPods(n *corev1.Node) bool {
	if n.Spec.Unschedulable || n.DeletionTimestamp != nil {
		return false
	}
	if os := n.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
		return false
	}
	for _, t := range n.Spec.Taints {
		if t.Key == corev1.TaintNodeNotReady {
			continue // the condition below is what it is made from
		}
		if t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute {
			return false
		}
	}
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func ptr[T any](v T) *T { return &v }
