// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/maptable"
)

// asCommand makes this test binary be inspect: for tests that run it with less rights.
const asCommand = "KUBE_CILIUM_INSPECT_TEST_COMMAND"

func TestMain(m *testing.M) {
	switch os.Getenv(asCommand) {
	case "":
		os.Exit(m.Run())
	case "write":
		m, err := ebpf.LoadPinnedMap(os.Args[1], nil)
		if err == nil {
			err = m.Put(uint32(0), bpf.Settings{Generation: 666})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		cmd := Command()
		cmd.SetArgs(os.Args[1:])
		if cmd.Execute() != nil {
			os.Exit(1)
		}
	}
}

// pinned is a bpf file system of the test's own with every map of ours in it.
type pinned struct {
	bpffs string
	maps  map[string]*ebpf.Map
}

func pinMaps(t *testing.T) *pinned {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("KUBE_CILIUM_TEST_ROOT") == "1" {
			t.Fatal("needs root, and KUBE_CILIUM_TEST_ROOT=1 promised it")
		}
		t.Skip("needs root: makes maps and mounts a bpf file system")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatalf("lift the limit of locked memory: %v", err)
	}
	p := &pinned{bpffs: t.TempDir(), maps: map[string]*ebpf.Map{}}
	if err := unix.Mount("bpf", p.bpffs, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a bpf file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(p.bpffs, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", p.bpffs, err)
		}
	})
	if err := os.Mkdir(filepath.Join(p.bpffs, PinDir), 0o700); err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.LoadMaps()
	if err != nil {
		t.Fatal(err)
	}
	for name, ms := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue // a section of the object, no table
		}
		m, err := ebpf.NewMap(ms)
		if err != nil {
			t.Fatalf("make map %s: %v", name, err)
		}
		t.Cleanup(func() { m.Close() })
		if err := m.Pin(p.path(name, 1)); err != nil {
			t.Fatalf("pin %s: %v", name, err)
		}
		p.maps[name] = m
	}
	return p
}

func (p *pinned) path(name string, layout int) string {
	return filepath.Join(p.bpffs, PinDir, fmt.Sprintf("%s_v%d", name, layout))
}

func (p *pinned) put(t *testing.T, name string, key, value any) {
	t.Helper()
	if err := p.maps[name].Put(key, value); err != nil {
		t.Fatalf("put into %s: %v", name, err)
	}
}

// run runs inspect in this process.
func (p *pinned) run(args ...string) (stdout, stderr string, err error) {
	var out, errOut bytes.Buffer
	cmd := Command()
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(append(args, "--bpffs", p.bpffs, "--events-socket", filepath.Join(p.bpffs, "none.sock")))
	err = cmd.Execute()
	return out.String(), errOut.String(), err
}

func (p *pinned) table(t *testing.T, name string) *maptable.Table {
	t.Helper()
	out, _, err := p.run("map", name)
	if err != nil {
		t.Fatal(err)
	}
	return parseTable(t, out)
}

func parseTable(t *testing.T, out string) *maptable.Table {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(out))
	dec.UseNumber()
	var table maptable.Table
	if err := dec.Decode(&table); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if err := table.Check(); err != nil {
		t.Fatal(err)
	}
	return &table
}

// lines is a table for comparing.
func lines(table *maptable.Table) string {
	var b strings.Builder
	for _, row := range table.Rows {
		for i, field := range row {
			if i > 0 {
				b.WriteByte(' ')
			}
			fmt.Fprintf(&b, "%q", maptable.FieldText(field))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func be16(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

func ip(s string) bpf.Addr { return bpf.AddrFrom(netip.MustParseAddr(s)) }

func fill(t *testing.T, p *pinned) {
	t.Helper()
	p.put(t, bpf.MapsMapEndpoints, ip("10.0.0.10"), bpf.Endpoint{Ifindex: 1, Identity: 4242, Id: 7, Mac: [6]uint8{2, 0, 0, 0, 0, 1}})
	p.put(t, bpf.MapsMapEndpoints, ip("10.0.0.9"), bpf.Endpoint{Flags: 1, Identity: 1})
	p.put(t, bpf.MapsMapEndpoints, ip("fd00::10"), bpf.Endpoint{Ifindex: 999999, Identity: 4242, Id: 7})
	p.put(t, bpf.MapsMapPodInterfaces, uint32(1), bpf.PodInterface{Ipv4: ip("10.0.0.10"), Identity: 4242, Id: 7})
	p.put(t, bpf.MapsMapPeers, ip("10.0.1.1"), bpf.Peer{Node: ip("172.30.0.12"), Identity: 300, Flags: uint32(bpf.MapsPeerFlagsPEER_TUNNEL | bpf.MapsPeerFlagsPEER_CLUSTER)})
	p.put(t, bpf.MapsMapPrefixes, bpf.PrefixKeyFrom(netip.MustParsePrefix("10.0.1.0/24")), bpf.Peer{Node: ip("172.30.0.12"), Identity: 127, Flags: 9})
	p.put(t, bpf.MapsMapPrefixes, bpf.PrefixKeyFrom(netip.MustParsePrefix("fd00::/64")), bpf.Peer{Identity: 127, Flags: 0x80})
	p.put(t, bpf.MapsMapNodes, ip("172.30.0.12"), bpf.Node{Mtu: 1400, MtuExpires: tick() + 100})
	p.put(t, bpf.MapsMapDevices, uint32(1), bpf.Device{Ipv4: ip("172.30.0.11"), Mtu: 1500})
	p.put(t, bpf.MapsMapConntrack, bpf.FlowKey{Lo: ip("10.0.0.10"), Hi: ip("10.0.1.1"), LoPort: be16(80), HiPort: be16(40000), Proto: 6},
		bpf.Conn{Seen: tick(), TcpFlags: [2]uint8{0x12, 0x10}, Flags: 1 | 2 | 32, Endpoint: 7, Identity: 300})
	p.put(t, bpf.MapsMapYoung, uint32(3), bpf.YoungConn{Key: bpf.FlowKey{Lo: ip("10.0.0.10"), Hi: ip("10.0.1.1"), LoPort: be16(80), HiPort: be16(40001), Proto: 6},
		Conn: bpf.Conn{Seen: tick(), TcpFlags: [2]uint8{0x02, 0}, Flags: 1 | uint16(bpf.MapsConnFlagsCONN_YOUNG), Endpoint: 7, Identity: 300}})
	over := bpf.YoungConn{Key: bpf.FlowKey{LoPort: be16(80), HiPort: be16(40002), Proto: 6}, Conn: bpf.Conn{Seen: tick() - 100}}
	p.put(t, bpf.MapsMapYoung, uint32(4), over)
	p.put(t, bpf.MapsMapAdvances, uint32(7), bpf.Advance{Window: tick() - 5, Left: 250, Apart: tick() - 60})
	p.put(t, bpf.MapsMapFragments, bpf.FragmentKey{Saddr: ip("10.0.0.10"), Daddr: ip("10.0.1.1"), Proto: 17}, bpf.Fragment{Sport: be16(53), Dport: be16(5353), Seen: tick()})
	p.put(t, bpf.MapsMapServices, bpf.ServiceKey{Addr: ip("10.96.0.10"), Port: be16(53), Proto: 17}, bpf.Service{Id: 3, Backends: 1})
	p.put(t, bpf.MapsMapBackends, bpf.BackendKey{Service: 3}, bpf.Backend{Addr: ip("10.0.0.10"), Port: be16(5300)})
	p.put(t, bpf.MapsMapServiceNames, bpf.ServiceNameKey{Cookie: 1<<63 + 1, Addr: ip("10.0.0.10"), Port: be16(5300), Proto: 17}, bpf.ServiceName{Addr: ip("10.96.0.10"), Port: be16(53)})
	p.put(t, bpf.MapsMapPolicies, uint32(7), bpf.Policy{Side: [2]bpf.PolicySide{
		{Flags: uint16(bpf.MapsPolicyFlagsPOLICY_NONE)},
		{DefaultRule: 0xbeef, Table: 3, Flags: uint16(bpf.MapsPolicyFlagsPOLICY_ENFORCED | bpf.MapsPolicyFlagsPOLICY_PORTS)},
	}})
	p.put(t, bpf.MapsMapPolicies, uint32(8), bpf.Policy{Side: [2]bpf.PolicySide{{}, {Flags: uint16(bpf.MapsPolicyFlagsPOLICY_ENFORCED)}}})
	allow := bpf.VerdictEntry{Rule: 0xcafe, Precedence: 5, Verdict: uint8(bpf.MapsVerdictVERDICT_ALLOWED)}
	deny := bpf.VerdictEntry{Rule: 0xd0, Precedence: 4, Verdict: uint8(bpf.MapsVerdictVERDICT_DENIED)}
	p.put(t, bpf.MapsMapVerdicts, bpf.VerdictKey{Table: 3, Proto: 6, Peer: 300, Port: be16(80)}, allow)
	p.put(t, bpf.MapsMapVerdicts, bpf.VerdictKey{Table: 3, Peer: bpf.PeerClassBit | 4}, deny)
	p.put(t, bpf.MapsMapVerdictRanges, bpf.VerdictRangeKey{Prefixlen: bpf.VerdictRangeBits + 12, Key: bpf.VerdictKey{Table: 3, Proto: 17, Port: be16(0x1230)}}, allow)
	p.put(t, bpf.MapsMapVerdictRanges, bpf.VerdictRangeKey{Prefixlen: bpf.VerdictRangeBits, Key: bpf.VerdictKey{Table: 3, Proto: 17}}, allow)
	p.put(t, bpf.MapsMapClasses, bpf.PrefixKeyFrom(netip.MustParsePrefix("192.168.0.0/16")), uint32(bpf.PeerClassBit|4))
	p.put(t, bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 4, ReportInterval: 5})
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	counters := make([]bpf.Counter, cpus)
	for i := range counters {
		counters[i] = bpf.Counter{Packets: 2, Bytes: 100}
	}
	budgets := make([]bpf.MapsDropBudget, cpus)
	budgets[0] = bpf.MapsDropBudget{Tick: tick(), Left: 9}
	p.put(t, bpf.MapsMapDropBudgets, uint32(133), budgets)
	p.put(t, bpf.MapsMapMetrics, uint32(bpf.MapsHookHOOK_TO_POD)*256+uint32(bpf.MapsReasonDROP_POLICY), counters)
}

func TestEveryMapIsShown(t *testing.T) {
	p := pinMaps(t)
	cpus, _ := ebpf.PossibleCPU()
	shown := map[string]bool{bpf.MapsMapEvents: true}
	for name, want := range map[string]string{
		bpf.MapsMapEndpoints: `"10.0.0.9" "0" "1" "" "" "" "HOST"
"10.0.0.10" "7" "4242" "lo" "02:00:00:00:00:01" "" ""
"fd00::10" "7" "4242" "if999999" "" "" ""
`,
		bpf.MapsMapPodInterfaces: `"lo" "7" "10.0.0.10" "" "4242" "" "" ""` + "\n",
		bpf.MapsMapPeers:         `"10.0.1.1" "300" "172.30.0.12" "TUNNEL,CLUSTER"` + "\n",
		bpf.MapsMapPrefixes: `"10.0.1.0/24" "127" "172.30.0.12" "TUNNEL,CLUSTER"
"fd00::/64" "127" "" "0x80"
`,
		bpf.MapsMapNodes:        `"172.30.0.12" "1400" "107s"` + "\n",
		bpf.MapsMapDevices:      `"lo" "172.30.0.11" "" "" "1500" ""` + "\n",
		bpf.MapsMapConntrack:    `"TCP" "10.0.1.1:40000" "10.0.0.10:80" "300" "7" "0s" "SYN,ACK" "ACK" "ANSWERED,TUNNEL" ""` + "\n",
		bpf.MapsMapYoung:        `"TCP" "10.0.1.1:40001" "10.0.0.10:80" "300" "7" "0s" "SYN" "" "YOUNG" ""` + "\n",
		bpf.MapsMapUnanswered:   "",
		bpf.MapsMapAdvances:     `"7" "250" "5s" "64s"` + "\n",
		bpf.MapsMapFragments:    `"UDP" "10.0.0.10:53" "10.0.1.1:5353" "0x00000000" "0s"` + "\n",
		bpf.MapsMapServices:     `"10.96.0.10" "53" "UDP" "3" "1" ""` + "\n",
		bpf.MapsMapBackends:     `"3" "0" "10.0.0.10" "5300" ""` + "\n",
		bpf.MapsMapServiceNames: `"9223372036854775809" "UDP" "10.0.0.10:5300" "10.96.0.10:53"` + "\n",
		bpf.MapsMapPolicies: `"7" "allowed" "0" "" "enforced" "3" "0000beef"
"8" "closed" "0" "" "enforced" "0" ""
`,
		bpf.MapsMapVerdicts: `"3" "" "4" "any" "" "deny" "000000d0" "4"
"3" "300" "" "TCP" "80" "allow" "0000cafe" "5"
`,
		bpf.MapsMapVerdictRanges: `"3" "" "" "UDP" "0-65535" "allow" "0000cafe" "5"
"3" "" "" "UDP" "4656-4671" "allow" "0000cafe" "5"
`,
		bpf.MapsMapClasses:      `"192.168.0.0/16" "4"` + "\n",
		bpf.MapsMapLiveSettings: `"4" "0" "5s" ""` + "\n",
		bpf.MapsMapDropBudgets:  `"0" "POLICY" "9" "0s"` + "\n",
		bpf.MapsMapHooks:        "",
		bpf.MapsMapMetrics:      fmt.Sprintf(`"to_pod" "POLICY" "true" "%d" "%d" "no policy allows it"`+"\n", 2*cpus, 100*cpus),
	} {
		// What was written in one tick is read in the same.
		at := tick()
		fill(t, p)
		table := p.table(t, name)
		for ; tick() != at; table = p.table(t, name) {
			at = tick()
			fill(t, p)
		}
		if got := lines(table); got != want || table.Layout != 1 || table.Remark != "" {
			t.Errorf("%s: layout %d, remark %q, rows\n%swant\n%s", name, table.Layout, table.Remark, got, want)
		}
		shown[name] = true
	}
	if _, _, err := p.run("map", bpf.MapsMapEvents); err == nil || !strings.Contains(err.Error(), "inspect monitor") {
		t.Errorf("events: %v", err)
	}
	for name := range p.maps {
		if !shown[name] {
			t.Errorf("map %s has no case here", name)
		}
	}
}

func TestUnansweredFlowsNameTheirTable(t *testing.T) {
	p := pinMaps(t)
	spec, err := bpf.LoadMaps()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := ebpf.NewMap(spec.Maps[bpf.MapsMapUnanswered].InnerMap)
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	p.put(t, bpf.MapsMapUnanswered, uint32(12), inner)
	var got string
	for at := tick() - 1; at != tick(); { // written and read in one tick
		at = tick()
		if err := inner.Put(bpf.FlowKey{Lo: ip("10.0.0.1"), Hi: ip("10.0.0.2"), Proto: 1, LoPort: be16(9), HiPort: be16(9)}, bpf.Conn{Seen: at, Endpoint: 12}); err != nil {
			t.Fatal(err)
		}
		got = lines(p.table(t, bpf.MapsMapUnanswered))
	}
	if want := `"12" "ICMP" "10.0.0.1:9" "10.0.0.2:9" "0" "12" "0s" "" "" "" ""` + "\n"; got != want {
		t.Errorf("got %swant %s", got, want)
	}
}

func TestMapsCountsAndNewestLayoutFirst(t *testing.T) {
	p := pinMaps(t)
	fill(t, p)
	newer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 3, MaxEntries: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer newer.Close()
	if err := newer.Put([]byte{1, 2, 3, 4}, []byte{0xa, 0xb, 0xc}); err != nil {
		t.Fatal(err)
	}
	if err := newer.Pin(p.path(bpf.MapsMapPeers, 12)); err != nil {
		t.Fatal(err)
	}
	table := p.table(t, bpf.MapsMapPeers)
	if got := lines(table); table.Layout != 12 || got != `"01020304" "0a0b0c"`+"\n" || table.Remark == "" {
		t.Errorf("an unknown layout shows as %+v", table)
	}
	if table = p.table(t, "peers_v1"); table.Layout != 1 || len(table.Rows) != 1 {
		t.Errorf("the older layout shows as %+v", table)
	}
	out, _, err := p.run("maps")
	if err != nil {
		t.Fatal(err)
	}
	var all []maptable.Info
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	entries := map[string]int64{}
	for _, info := range all {
		if info.Error != "" || info.Bytes <= 0 || info.MaxEntries <= 0 {
			t.Errorf("%+v", info)
		}
		entries[fmt.Sprintf("%s_v%d", info.Name, info.Layout)] = info.Entries
	}
	for name, want := range map[string]int64{"endpoints_v1": 3, "peers_v1": 1, "peers_v12": 1, "prefixes_v1": 2, "metrics_v1": -1, "events_v1": -1, "hooks_v1": 0} {
		if entries[name] != want {
			t.Errorf("%s has %d entries, want %d", name, entries[name], want)
		}
	}
}

// A full table is read whole, in batches, while its entries come and go.
func TestLargeMapWhileItChanges(t *testing.T) {
	p := pinMaps(t)
	conntrack := p.maps[bpf.MapsMapConntrack]
	const n = 20000
	key := func(i int) bpf.FlowKey {
		k := bpf.FlowKey{Lo: ip("10.0.0.1"), Hi: ip("10.0.0.2"), Proto: 6}
		binary.BigEndian.PutUint32(k.Hi.B[12:], uint32(i)+0x0a000002)
		return k
	}
	for i := range n {
		if err := conntrack.Put(key(i), bpf.Conn{}); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // the last tenth comes and goes, the rest stays
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			k := key(n - n/10 + i%(n/10))
			_ = conntrack.Delete(k)
			_ = conntrack.Put(k, bpf.Conn{})
		}
	}()
	table := p.table(t, bpf.MapsMapConntrack)
	close(stop)
	<-done
	seen := map[string]bool{}
	for _, row := range table.Rows {
		to := maptable.FieldText(row[2])
		if seen[to] {
			t.Fatalf("%s comes twice", to)
		}
		seen[to] = true
	}
	if len(seen) < n-n/10 {
		t.Errorf("%d entries, %d were there all the time", len(seen), n-n/10)
	}
}

func TestNothingPinned(t *testing.T) {
	p := &pinned{bpffs: t.TempDir()}
	for _, args := range [][]string{{"maps"}, {"map", "peers"}} {
		if out, _, err := p.run(args...); err == nil || out != "" || !strings.Contains(err.Error(), "is bpffs mounted") {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
	out, _, err := p.run("status")
	var s Status
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.Maps != 0 || s.AgentServesEvents || len(s.Problems) != 2 {
		t.Errorf("status %q, %v", out, err)
	}
	if _, _, err := p.run("monitor"); err == nil || !strings.Contains(err.Error(), "does not serve events") {
		t.Errorf("monitor: %v", err)
	}
	if _, _, err := p.run("uninstall"); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("uninstall: %v", err)
	}
	if _, _, err := p.run("monitor", "-o", "yaml"); err == nil {
		t.Error("monitor -o yaml is accepted")
	}
}

// What the inspect container is: root without any capability, bpffs mounted read-only, pins of mode 0440. It reads
// every map. The mode is what keeps it from writing: the kernel asks a map's file mode, not whether the mount is
// read-only, and the read-only mount is what keeps it from changing the mode.
func TestWithoutCapabilities(t *testing.T) {
	p := pinMaps(t)
	fill(t, p)
	for name := range p.maps {
		if err := os.Chmod(p.path(name, 1), 0o440); err != nil {
			t.Fatal(err)
		}
	}
	ro := t.TempDir()
	if err := unix.Mount(p.bpffs, ro, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(ro, unix.MNT_DETACH) })
	if err := unix.Mount("", ro, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	bare := func(mode string, args ...string) (string, error) {
		cmd := exec.Command("setpriv", append([]string{"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", os.Args[0]}, args...)...)
		cmd.Env = append(os.Environ(), asCommand+"="+mode)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, errOut.String())
		}
		return string(out), err
	}
	for name := range p.maps {
		if name == bpf.MapsMapEvents {
			continue
		}
		out, err := bare("inspect", "map", name, "--bpffs", ro)
		if err != nil {
			t.Errorf("map %s: %v", name, err)
			continue
		}
		parseTable(t, out)
	}
	if out, err := bare("inspect", "maps", "--bpffs", ro); err != nil || strings.Contains(out, "error") {
		t.Errorf("maps: %s %v", out, err)
	}
	settings := filepath.Join(ro, PinDir, bpf.MapsMapLiveSettings+"_v1")
	if _, err := bare("write", settings); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a write was not refused: %v", err)
	}
	if err := os.Chmod(settings, 0o600); err == nil {
		t.Error("the mode can be changed through the read-only mount")
	}
}

func TestUninstallRemovesOurFilesAndNoOthers(t *testing.T) {
	root := t.TempDir()
	f := nodeFiles{filepath.Join(root, "bin"), filepath.Join(root, "conf"), filepath.Join(root, "state"), filepath.Join(root, "none")}
	for _, file := range []string{"bin/cilium-cni", "bin/loopback", "conf/05-kube-cilium.conflist", "conf/10-other.conf", "state/endpoints/7.json"} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time nothing is left to do
		if err := f.removeConfiguration(); err != nil {
			t.Fatal(err)
		}
		if err := f.removeRest(); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(root, "*/*"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{filepath.Join(root, "bin/loopback"), filepath.Join(root, "conf/10-other.conf")}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
}
