// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tracePort is where sinks listen.
const tracePort = 8090

// guard is how long before a change a window ends in which everything has to arrive: a sender may not run between
// reading the clock and sending.
const guard = 500 * time.Millisecond

// trace follows single messages: pods send and receive all the time and write down when, and the test says what was in
// force when.
type trace struct {
	binaries string
	// inPods is a folder of each node's that its pods have as /trace; here are where this machine sees them, and one
	// more for what runs outside.
	inPods, outside string
	here            []string
	flows           []*tracedFlow
}

// tracedFlow goes one way, from whatever sends its number to whatever receives it.
type tracedFlow struct {
	number  int
	name    string
	proto   string
	dst     string
	windows []*window
}

// window is a time in which all of a flow's messages have to arrive, or none of them may.
type window struct {
	why      string
	forbid   bool
	from, to time.Time
}

func newTrace(t testing.TB, c *cluster) *trace {
	t.Helper()
	tr := &trace{binaries: proberDir(t), outside: t.TempDir()}
	name := filepath.Base(filepath.Dir(tr.outside))
	tr.inPods = "/var/log/" + name
	tr.here = []string{tr.outside}
	for _, n := range c.Nodes {
		// A node's logs are files of this machine; all else that it writes is its own.
		tr.here = append(tr.here, filepath.Join(filepath.Dir(c.Kubeconfig), n.Name, "log", name))
	}
	return tr
}

// to adds flows to each family's address by each protocol.
func (tr *trace) to(name string, addresses map[string]string, protos ...string) []*tracedFlow {
	var added []*tracedFlow
	for _, family := range []string{"4", "6"} {
		addr, ok := addresses[family]
		if !ok {
			continue
		}
		if family == "6" {
			addr = "[" + addr + "]"
		}
		for _, proto := range protos {
			f := &tracedFlow{number: len(tr.flows) + 1, name: name + " v" + family + " " + proto, proto: proto, dst: fmt.Sprintf("%s:%d", addr, tracePort)}
			tr.flows = append(tr.flows, f)
			added = append(added, f)
		}
	}
	return added
}

// allowed says that from now on every message arrives.
func allowed(why string, flows ...*tracedFlow) { open(why, false, flows) }

// forbidden says that from now on no message that is sent arrives.
func forbidden(why string, flows ...*tracedFlow) { open(why, true, flows) }

func open(why string, forbid bool, flows []*tracedFlow) {
	unsaid(flows...)
	for _, f := range flows {
		f.windows = append(f.windows, &window{why: why, forbid: forbid, from: time.Now()})
	}
}

// unsaid says that what happens next is either's right: something is about to change.
func unsaid(flows ...*tracedFlow) {
	for _, f := range flows {
		if n := len(f.windows); n > 0 && f.windows[n-1].to.IsZero() {
			w := f.windows[n-1]
			w.to = time.Now()
			if !w.forbid {
				w.to = w.to.Add(-guard)
			}
		}
	}
}

// message is one that was sent; arrived is zero for one that did not arrive.
type message struct{ sent, arrived int64 }

// messages reads what was sent and what arrived, by flow number.
func (tr *trace) messages(t testing.TB) map[int][]message {
	t.Helper()
	type key struct {
		flow int
		sent int64
	}
	arrived := map[key]int64{}
	tr.lines(t, "arrived-*", 3, func(f []int64) { arrived[key{int(f[0]), f[1]}] = f[2] })
	all := map[int][]message{}
	tr.lines(t, "sent-*", 2, func(f []int64) {
		k := key{int(f[0]), f[1]}
		all[k.flow] = append(all[k.flow], message{sent: k.sent, arrived: arrived[k]})
		delete(arrived, k)
	})
	for k, at := range arrived { // its sender was killed before it could write it down
		all[k.flow] = append(all[k.flow], message{sent: k.sent, arrived: at})
	}
	return all
}

// lines reads whole lines of numbers.
func (tr *trace) lines(t testing.TB, pattern string, fields int, each func([]int64)) {
	t.Helper()
	var files []string
	for _, dir := range tr.here {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			words := strings.Fields(lines.Text())
			numbers := make([]int64, len(words))
			for i, w := range words {
				if numbers[i], err = strconv.ParseInt(w, 10, 64); err != nil {
					numbers = nil
					break
				}
			}
			if len(numbers) == fields {
				each(numbers)
			}
		}
		f.Close()
	}
}

// flowing waits until messages that were sent from now on arrive on each flow.
func (tr *trace) flowing(t testing.TB, flows ...*tracedFlow) {
	t.Helper()
	from := time.Now().UnixNano()
	eventually(t, "messages arrive", 30*time.Second, func() error {
		all := tr.messages(t)
		for _, f := range flows {
			if !slices.ContainsFunc(all[f.number], func(m message) bool { return m.sent >= from && m.arrived != 0 }) {
				return fmt.Errorf("none on %s", f.name)
			}
		}
		return nil
	})
}

// check ends all windows and holds every message against them.
func (tr *trace) check(t testing.TB) {
	t.Helper()
	unsaid(tr.flows...)
	time.Sleep(settled)
	all := tr.messages(t)
	held := map[string]int{}
	var reasons []string
	for _, f := range tr.flows {
		for _, w := range f.windows {
			if !slices.Contains(reasons, w.why) {
				reasons = append(reasons, w.why)
			}
			held[w.why] += f.hold(t, w, all[f.number])
		}
	}
	for _, why := range reasons {
		t.Logf("%6d messages: %s", held[why], why)
	}
}

// settled is how long a message may be under way, or a connection be tried.
const settled = 4 * time.Second

// hold fails for each message that the window does not let be, and says how many were sent in it.
func (f *tracedFlow) hold(t testing.TB, w *window, messages []message) (sent int) {
	t.Helper()
	from, to := w.from.UnixNano(), w.to.UnixNano()
	var lost, passed int
	var first int64
	for _, m := range messages {
		if m.sent < from || m.sent >= to {
			continue
		}
		sent++
		switch {
		case w.forbid && m.arrived != 0 && m.arrived < to:
			passed++
		case !w.forbid && m.arrived == 0:
			lost++
		default:
			continue
		}
		if first == 0 || m.sent < first {
			first = m.sent
		}
	}
	length := w.to.Sub(w.from).Round(time.Millisecond)
	what := fmt.Sprintf("%s, %s (%s): %d sent", f.name, w.why, length, sent)
	after := time.Duration(first - from).Round(time.Millisecond)
	switch {
	case passed > 0:
		fault(t, "%s, %d passed that policy forbids, the first after %s", what, passed, after)
	case lost > 0:
		fault(t, "%s, %d lost that policy allows, the first after %s", what, lost, after)
	case sent == 0 && length > time.Second && !(w.forbid && f.proto == "tcp"):
		// A TCP connection that was cut sends nothing; all others always try.
		fault(t, "%s: this shows nothing", what)
	}
	return sent
}

// sender is a pod that sends flows from its first instant to its last.
func (tr *trace) sender(namespace, name, node, labels string, flows ...*tracedFlow) string {
	return tr.pod(namespace, name, node, labels, 0, append([]string{"send", "-rate", "10", "-record", "/trace/sent-" + name}, flowArgs(flows)...)...)
}

func flowArgs(flows []*tracedFlow) []string {
	var args []string
	for _, f := range flows {
		args = append(args, fmt.Sprintf("%d=%s:%s", f.number, f.proto, f.dst))
	}
	return args
}

// sink is a pod that receives from its first instant until it is killed, grace seconds after it was told to end.
func (tr *trace) sink(namespace, name, node, labels string, grace int) string {
	return tr.pod(namespace, name, node, labels, grace, "sink", "-port", fmt.Sprint(tracePort), "-record", "/trace/arrived-"+name, fmt.Sprintf("-stay=%v", grace > 0))
}

func (tr *trace) pod(namespace, name, node, labels string, grace int, args ...string) string {
	return fmt.Sprintf("\napiVersion: v1\nkind: Pod\nmetadata: {namespace: %s, name: %s, labels: {%s}}\nspec:\n%s\n---\n",
		namespace, name, labels, tr.podSpec("  ", node, grace, args...))
}

// podSpec is the spec of a pod that runs the prober, indented.
func (tr *trace) podSpec(indent, node string, grace int, args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = strconv.Quote(a)
	}
	where := ""
	if node != "" {
		where = "nodeName: " + node
	}
	lines := fmt.Sprintf(`%s
terminationGracePeriodSeconds: %d
automountServiceAccountToken: false
containers:
- name: prober
  image: registry.k8s.io/e2e-test-images/agnhost:2.66.1
  imagePullPolicy: IfNotPresent
  command: [/prober/prober, %s]
  env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  securityContext: {capabilities: {add: [NET_ADMIN]}}
  volumeMounts: [{name: prober, mountPath: /prober, readOnly: true}, {name: trace, mountPath: /trace}]
volumes:
- {name: prober, hostPath: {path: %s, type: Directory}}
- {name: trace, hostPath: {path: %s, type: DirectoryOrCreate}}`, where, grace, strings.Join(quoted, ", "), tr.binaries, tr.inPods)
	return indent + strings.ReplaceAll(lines, "\n", "\n"+indent)
}
