// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kube-cilium/kube-cilium/test/e2e/talk"
)

// conversation is one connection between two pods, every packet of which is known beforehand: prober talk holds it.
type conversation struct {
	talk.Conversation

	family                 string
	client, server         string // as flows name them
	clientNode, serverNode string
	// asker is the pod that begins it.
	asker string
	pairs
	// beyond is set where one side is no pod: only the other's node tells of it.
	beyond *beyond
}

// beyond is how a pod's node tells of a conversation with somebody who is no pod.
type beyond struct {
	node, direction string
	request, reply  string // trace points
}

// judged is what policies say of a conversation: by which of them, "" where none selects the pod.
type judged struct {
	egress, ingress string
	// refused is the side that refuses, EGRESS or INGRESS, or "".
	refused string
}

// side is what a flow says of one side's policies.
func (j judged) side(direction string) string {
	by := j.egress
	if direction == "INGRESS" {
		by = j.ingress
	}
	verb := "allowed"
	if j.refused == direction {
		verb = "denied"
	}
	if by == "" {
		return ""
	}
	return fmt.Sprintf("; %s %s by %s", strings.ToLower(direction), verb, by)
}

// line is a flow as the test compares it.
func (c *conversation) line(node, direction string, reply bool, what, end string) string {
	ends := [2]string{c.client, c.server}
	if c.Protocol != "icmp" {
		ends = [2]string{fmt.Sprintf("%s:%d", c.client, c.From), fmt.Sprintf("%s:%d", c.server, c.Port)}
	}
	if reply {
		ends[0], ends[1] = ends[1], ends[0]
	}
	return fmt.Sprintf("%s: %s %s > %s IPv%s %s %s", node, direction, ends[0], ends[1], c.family, what, end)
}

// packet is one of a conversation that is told of by default.
type packet struct {
	reply bool
	what  string
}

// told are the packets of a conversation that nobody refuses of which the default reporting tells, as docs/hubble.md says.
func (c *conversation) told() []packet {
	switch {
	case c.Protocol == "udp":
		return []packet{{false, "UDP"}, {true, "UDP"}}
	case c.Protocol == "icmp" && c.family == "4":
		return []packet{{false, "ICMPv4 8/0"}, {true, "ICMPv4 0/0"}}
	case c.Protocol == "icmp":
		return []packet{{false, "ICMPv6 128/0"}, {true, "ICMPv6 129/0"}}
	case c.End == "closed":
		return []packet{{false, "TCP SYN"}, {true, "TCP RST+ACK"}}
	case c.End == "reset":
		return []packet{{false, "TCP SYN"}, {true, "TCP SYN+ACK"}, {false, "TCP RST+ACK"}}
	}
	return []packet{{false, "TCP SYN"}, {true, "TCP SYN+ACK"}, {false, "TCP FIN+ACK"}, {true, "TCP FIN+ACK"}}
}

// flows are those that have to tell of the conversation: exactly these, each as often as it is here.
func (c *conversation) flows() []string {
	var all []string
	near := c.clientNode == c.serverNode
	point := map[bool]string{true: "TO_ENDPOINT", false: cmp.Or(c.away, "TO_OVERLAY")}[near]
	sides := c.side("EGRESS")
	if near {
		sides += c.side("INGRESS")
	}
	switch {
	case c.beyond != nil:
		for _, p := range c.told() {
			point := map[bool]string{false: c.beyond.request, true: c.beyond.reply}[p.reply]
			all = append(all, c.line(c.beyond.node, c.beyond.direction, p.reply, p.what, fmt.Sprintf("trace FORWARDED reply=%t %s", p.reply, point)))
		}
		return all
	case c.untold && c.refused == "":
		return nil
	case c.refused == "":
		for _, p := range c.told() {
			way := fmt.Sprintf("trace FORWARDED reply=%t ", p.reply)
			switch {
			case near && p.reply: // told as its sender sees it: for him it is of a connection that came in
				all = append(all, c.line(c.serverNode, "INGRESS", true, p.what, way+point+sides))
			case near:
				all = append(all, c.line(c.clientNode, "EGRESS", false, p.what, way+point+sides))
			case p.reply:
				all = append(all, c.line(c.serverNode, "INGRESS", true, p.what, way+point+c.side("INGRESS")),
					c.line(c.clientNode, "EGRESS", true, p.what, way+"TO_ENDPOINT"+sides))
			default:
				all = append(all, c.line(c.clientNode, "EGRESS", false, p.what, way+point+sides),
					c.line(c.serverNode, "INGRESS", false, p.what, way+"TO_ENDPOINT"+c.side("INGRESS")))
			}
		}
		return all
	}
	// Nobody answers, so that only the first packet is there, as often as it is sent.
	first := c.told()[0].what
	if c.refused == "INGRESS" && !near {
		if !c.untold {
			all = append(all, c.line(c.clientNode, "EGRESS", false, first, "trace FORWARDED reply=false "+point+sides))
		}
		sides = c.side("INGRESS")
	}
	if c.refused == "EGRESS" { // the other side is not asked
		sides = c.side("EGRESS")
	}
	for range c.sent() {
		node := map[string]string{"EGRESS": c.clientNode, "INGRESS": c.serverNode}[c.refused]
		all = append(all, c.line(node, c.refused, false, first, "drop DROPPED POLICY_DENIED"+sides))
	}
	return all
}

// sent is how many packets a client sends that gets no answer.
func (c *conversation) sent() int {
	if c.Protocol == "udp" {
		return c.Rounds
	}
	return 1
}

// verdicts are what policies say of the conversation, for who asks for that.
func (c *conversation) verdicts() []string {
	var all []string
	first := c.told()[0].what
	for direction, node := range map[string]string{"EGRESS": c.clientNode, "INGRESS": c.serverNode} {
		switch {
		case c.refused == direction:
			for range c.sent() {
				all = append(all, c.line(node, direction, false, first, "verdict DROPPED POLICY_DENIED"+c.side(direction)))
			}
		case c.side(direction) == "" || c.refused == "EGRESS" || c.untold:
		case c.refused == "INGRESS" && c.clientNode == c.serverNode: // one packet, one refusal
		default:
			all = append(all, c.line(node, direction, false, first, "verdict FORWARDED reply=false"+c.side(direction)))
		}
	}
	return all
}

// describe puts a flow into the words of conversation.line.
func describe(r *observerpb.GetFlowsResponse) string {
	f := r.GetFlow()
	ends := [2]string{endName(f.GetSource(), f.GetSourceNames()), endName(f.GetDestination(), f.GetDestinationNames())}
	port := func(from, to uint32) {
		ends[0], ends[1] = fmt.Sprintf("%s:%d", ends[0], from), fmt.Sprintf("%s:%d", ends[1], to)
	}
	what := "?"
	switch l4 := f.GetL4(); {
	case l4.GetTCP() != nil:
		port(l4.GetTCP().GetSourcePort(), l4.GetTCP().GetDestinationPort())
		what = "TCP " + flagNames(l4.GetTCP().GetFlags())
	case l4.GetUDP() != nil:
		port(l4.GetUDP().GetSourcePort(), l4.GetUDP().GetDestinationPort())
		what = "UDP"
	case l4.GetICMPv4() != nil:
		what = fmt.Sprintf("ICMPv4 %d/%d", l4.GetICMPv4().GetType(), l4.GetICMPv4().GetCode())
	case l4.GetICMPv6() != nil:
		what = fmt.Sprintf("ICMPv6 %d/%d", l4.GetICMPv6().GetType(), l4.GetICMPv6().GetCode())
	}
	words := []string{map[int32]string{1: "drop", 4: "trace", 5: "verdict"}[f.GetEventType().GetType()], f.GetVerdict().String()}
	if f.GetDropReasonDesc() != 0 {
		words = append(words, f.GetDropReasonDesc().String())
	}
	if f.GetIsReply() != nil {
		words = append(words, fmt.Sprintf("reply=%t", f.GetIsReply().GetValue()))
	}
	if f.GetTraceObservationPoint() != 0 {
		words = append(words, f.GetTraceObservationPoint().String())
	}
	for _, by := range []struct {
		what     string
		policies []*flowpb.Policy
	}{
		{"egress allowed", f.GetEgressAllowedBy()}, {"egress denied", f.GetEgressDeniedBy()},
		{"ingress allowed", f.GetIngressAllowedBy()}, {"ingress denied", f.GetIngressDeniedBy()},
	} {
		var names []string
		for _, p := range by.policies {
			names = append(names, strings.Join(append([]string{p.GetKind() + " " + p.GetNamespace() + "/" + p.GetName()}, p.GetLabels()...), " "))
		}
		if slices.Sort(names); len(names) > 0 {
			words[len(words)-1] += fmt.Sprintf("; %s by %s", by.what, strings.Join(names, ", "))
		}
	}
	return fmt.Sprintf("%s: %s %s > %s %s %s %s", r.GetNodeName(), f.GetTrafficDirection(), ends[0], ends[1], f.GetIP().GetIpVersion(), what, strings.Join(words, " "))
}

// endName is a pod's name, or who else it is and the node's name.
func endName(e *flowpb.Endpoint, names []string) string {
	if e.GetPodName() != "" {
		return e.GetPodName()
	}
	return strings.Join(append(e.GetLabels(), names...), " ")
}

// ofKubelet tells that a flow is of kubelet asking a pod whether it is ready: its port is of the kernel's choice.
func ofKubelet(f *flowpb.Flow) bool {
	const firstEphemeral, host = 32768, 1
	tcp := f.GetL4().GetTCP()
	return f.GetSource().GetIdentity() == host && tcp.GetSourcePort() >= firstEphemeral && tcp.GetDestinationPort() == proberPort ||
		f.GetDestination().GetIdentity() == host && tcp.GetDestinationPort() >= firstEphemeral && tcp.GetSourcePort() == proberPort
}

func flagNames(f *flowpb.TCPFlags) string {
	var names []string
	for _, flag := range []struct {
		name string
		set  bool
	}{{"SYN", f.GetSYN()}, {"FIN", f.GetFIN()}, {"RST", f.GetRST()}, {"PSH", f.GetPSH()}, {"ACK", f.GetACK()}, {"URG", f.GetURG()}, {"ECE", f.GetECE()}, {"CWR", f.GetCWR()}} {
		if flag.set {
			names = append(names, flag.name)
		}
	}
	return strings.Join(names, "+")
}

// readFlow reads a line of -o jsonpb: a message of Hubble's GetFlows that holds a flow, and nothing that the API does not know.
func readFlow(line string) (*observerpb.GetFlowsResponse, error) {
	r := &observerpb.GetFlowsResponse{}
	if err := protojson.Unmarshal([]byte(line), r); err != nil {
		return nil, fmt.Errorf("%w: %s", err, line)
	}
	if f := r.GetFlow(); f == nil || r.GetNodeName() == "" || r.GetNodeName() != f.GetNodeName() || !r.GetTime().IsValid() || r.GetTime().AsTime() != f.GetTime().AsTime() {
		return nil, fmt.Errorf("no flow with its node and time: %s", line)
	}
	return r, nil
}

// readFlows reads all lines, until one is none.
func readFlows(out string) (all []*observerpb.GetFlowsResponse, err error) {
	for line := range strings.Lines(out) {
		r, err := readFlow(line)
		if err != nil {
			return all, err
		}
		all = append(all, r)
	}
	return all, nil
}

// follower is a kubectl hubble flows -f: what it has printed so far.
type follower struct {
	mu    sync.Mutex
	flows []*observerpb.GetFlowsResponse
	err   error
}

// follow runs kubectl hubble flows -f in a format that readFlow reads.
func (c *cluster) follow(t testing.TB, args ...string) *follower {
	t.Helper()
	cmd := c.Client(t.Context(), hubbleBinary(), append([]string{"flows", "-f"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	remarks := &bytes.Buffer{}
	cmd.Stderr = remarks
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	f, done := &follower{}, make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			r, err := readFlow(lines.Text())
			f.mu.Lock()
			if err != nil {
				f.err = err
			} else {
				f.flows = append(f.flows, r)
			}
			f.mu.Unlock()
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = errors.Join(f.err, lines.Err(), errors.New("no more flows are told of"))
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%v said: %s", cmd.Args, remarks)
		}
	})
	return f
}

// seen are the flows so far.
func (f *follower) seen() ([]*observerpb.GetFlowsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.flows), f.err
}

func hubbleBinary() string {
	return filepath.Join(filepath.Dir(os.Getenv("TEST_CLUSTER")), "kubectl-hubble")
}

// script holds conversations and knows what has to be told of all that were held.
type script struct {
	c  *cluster
	ns string

	port     uint16   // of a client, the last that was used
	want     []string // flows of all that was held
	pods     []string // those of them that are between pods
	verdicts []string
	// void are client's ports of conversations that say nothing: the machine was too busy.
	void map[uint32]bool
}

// attempts is how often a conversation is held until the machine was quick enough for it.
const attempts = 20

// pairs says that pods of one name talk to those of another on every node, and what policies say of that.
type pairs struct {
	client, server string
	judged
	// untold: only drops are reported.
	untold bool
	// away is the trace point of what leaves for another node's pod; "" is TO_OVERLAY.
	away string
}

// hold has the pairs hold a conversation of each kind over each family, each client with the server of its own node and
// of the others.
func (s *script) hold(t testing.TB, what string, all ...pairs) {
	t.Helper()
	var todo []conversation
	for _, p := range all {
		for server, at := range s.c.Nodes {
			name := podOn(p.server, server)
			for family, ip := range s.c.podIPs(t, s.ns, name) {
				for client, from := range s.c.Nodes {
					todo = append(todo, kinds(conversation{
						Conversation: talk.Conversation{Host: ip, Rounds: 2}, family: family, client: podOn(p.client, client), server: name, clientNode: from.Name, serverNode: at.Name,
						asker: podOn(p.client, client), pairs: p,
					})...)
				}
			}
		}
	}
	s.until(t, what, todo)
}

// holdBeyond has pods talk to nodes and to the world, and nodes to pods, where no policy selects anybody.
func (s *script) holdBeyond(t testing.TB, what, client, server, host string) {
	t.Helper()
	var todo []conversation
	add := func(asker, from, to, family, ip string, b beyond) {
		todo = append(todo, kinds(conversation{Conversation: talk.Conversation{Host: ip, Rounds: 2}, family: family, client: from, server: to, asker: asker, beyond: &b})...)
	}
	for i, own := range s.c.Nodes {
		pod, node := podOn(client, i), podOn(host, i)
		for j, n := range s.c.Nodes {
			name, out := "reserved:remote-node "+n.Name, "TO_NETWORK"
			back, here := "TO_OVERLAY", "reserved:remote-node "+own.Name
			if i == j {
				name, out = "reserved:host "+n.Name, "TO_HOST"
				back, here = "TO_HOST", name
			}
			for family, ip := range byFamily(n.Addresses) {
				add(pod, pod, name, family, ip, beyond{own.Name, "EGRESS", out, "TO_ENDPOINT"})
			}
			for family, ip := range s.c.podIPs(t, s.ns, podOn(server, j)) {
				add(node, here, podOn(server, j), family, ip, beyond{n.Name, "INGRESS", "TO_ENDPOINT", back})
			}
		}
		for family, ip := range byFamily(s.c.Outside.World) {
			add(pod, pod, "reserved:world", family, ip, beyond{own.Name, "EGRESS", "TO_NETWORK", "TO_ENDPOINT"})
		}
	}
	// What may ping without a privilege is a setting of each network namespace, and pods' have it.
	todo = slices.DeleteFunc(todo, func(c conversation) bool { return c.Protocol == "icmp" && strings.HasPrefix(c.asker, host) })
	s.until(t, what, todo)
}

// until holds conversations until none is void.
func (s *script) until(t testing.TB, what string, todo []conversation) {
	t.Helper()
	for range attempts {
		for i := range todo {
			s.port++
			todo[i].From = s.port
		}
		if todo = s.once(t, what, todo); len(todo) == 0 {
			return
		}
	}
	t.Fatalf("%s: the machine was too busy %d times for %+v", what, attempts, todo)
}

// podOn is the name of a node's pod.
func podOn(name string, node int) string { return fmt.Sprintf("%s-%d", name, node+1) }

// kinds are the conversations that two pods can hold.
func kinds(c conversation) (all []conversation) {
	ends := []string{"close", "reset", "closed"}
	if c.refused != "" {
		ends = []string{"silence"}
	}
	for _, end := range ends {
		c.Protocol, c.Port, c.End = "tcp", proberPort, end
		if end == "closed" {
			c.Port = proberPort - 1
		}
		all = append(all, c)
	}
	c.Protocol, c.Port, c.End = "udp", proberPort, ends[0]
	all = append(all, c)
	c.Protocol, c.Port = "icmp", 0
	return append(all, c)
}

// once holds conversations and returns those that have to be held again.
func (s *script) once(t testing.TB, what string, all []conversation) (again []conversation) {
	t.Helper()
	by := map[string][]conversation{}
	for _, c := range all {
		by[c.asker] = append(by[c.asker], c)
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		fail []string
	)
	for asker, list := range by {
		wg.Go(func() {
			talked, err := s.talk(t, asker, list)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				fail = append(fail, err.Error())
				return
			}
			for i, r := range talked {
				c := &list[i]
				if r.Error != "" {
					fail = append(fail, fmt.Sprintf("%s: %+v: %s", what, *c, r.Error))
				}
				if r.Void {
					s.void[uint32(c.From)] = true
					again = append(again, *c)
					continue
				}
				s.want = append(s.want, c.flows()...)
				if c.beyond == nil {
					s.pods = append(s.pods, c.flows()...)
				}
				s.verdicts = append(s.verdicts, c.verdicts()...)
			}
		})
	}
	wg.Wait()
	if len(fail) > 0 {
		t.Fatal(strings.Join(fail, "\n"))
	}
	return again
}

func (s *script) talk(t testing.TB, asker string, list []conversation) ([]talk.Outcome, error) {
	questions := make([]talk.Conversation, len(list))
	for i := range list {
		questions[i] = list[i].Conversation
	}
	in, err := json.Marshal(questions)
	if err != nil {
		return nil, err
	}
	out, err := s.c.InPod(t.Context(), s.ns, asker, in, "/prober/prober", "talk")
	if err != nil {
		return nil, err
	}
	var answers []talk.Outcome
	if err := json.Unmarshal([]byte(out), &answers); err != nil {
		return nil, fmt.Errorf("prober said %q: %w", out, err)
	}
	if len(answers) != len(list) {
		return nil, fmt.Errorf("prober said %q of %d conversations", out, len(list))
	}
	return answers, nil
}

// isVoid tells that a flow is of a conversation that says nothing.
func (s *script) isVoid(f *flowpb.Flow) bool {
	l4 := f.GetL4()
	for _, port := range []uint32{l4.GetTCP().GetSourcePort(), l4.GetTCP().GetDestinationPort(), l4.GetUDP().GetSourcePort(), l4.GetUDP().GetDestinationPort()} {
		if s.void[port] {
			return true
		}
	}
	return false
}

// compare says how flows differ from what has to be told, every one counted; nil where they do not.
func (s *script) compare(flows []*observerpb.GetFlowsResponse, want []string) error {
	count := map[string]int{}
	for _, w := range want {
		count[w]--
	}
	for _, r := range flows {
		if !s.isVoid(r.GetFlow()) && !ofKubelet(r.GetFlow()) {
			count[describe(r)]++
		}
	}
	var wrong []string
	for line, n := range count {
		switch {
		case n < 0:
			wrong = append(wrong, fmt.Sprintf("missing %d of %s", -n, line))
		case n > 0:
			wrong = append(wrong, fmt.Sprintf("%d too many of %s", n, line))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	if len(wrong) > 40 {
		wrong = append(wrong[:40], fmt.Sprintf("and %d more", len(wrong)-40))
	}
	return fmt.Errorf("%d flows of %d are not as they should be:\n%s", len(wrong), len(want), strings.Join(wrong, "\n"))
}

// told waits until flows tell of all that was held, and of nothing else.
func (s *script) told(t testing.TB, what string, f *follower) {
	t.Helper()
	eventually(t, "the flows of "+what, time.Minute, func() error {
		flows, err := f.seen()
		if err != nil {
			return err
		}
		return s.compare(flows, s.want)
	})
}

// whereLost helps to find what a follower was not told of: the rings have it, or the programs could not report it, or
// they did not want to.
func (s *script) whereLost(t testing.TB, before map[string]counted) {
	for node, b := range before {
		if now, err := s.c.readCounted(t, node); err != nil {
			t.Logf("%s: %v", node, err)
		} else {
			t.Logf("%s: %d events since the beginning, %d lost", node, now.seen-b.seen, now.lost-b.lost)
		}
	}
	held, err := readFlows(s.c.hubble(t, "flows", "-n", s.ns, "--all", "-o", "jsonpb"))
	t.Logf("what the rings hold, beside what should have been told: %v", errors.Join(err, s.compare(held, s.want)))
}
