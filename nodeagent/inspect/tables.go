// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/maptable"
)

const unknownLayout = "this build does not know the map's layout: fields are shown as bytes"

// reader says how one map is shown.
type reader struct {
	key, value int // sizes in bytes that the row function understands
	columns    []maptable.Column
	// row returns nil for an entry that is not worth a line.
	row func(key, value []byte) []any
}

// of makes a reader for typed keys and values.
func of[K, V any](row func(*K, *V) []any, columns ...maptable.Column) reader {
	return reader{
		key: int(unsafe.Sizeof(*new(K))), value: int(unsafe.Sizeof(*new(V))), columns: columns,
		row: func(key, value []byte) []any {
			var k K
			var v V
			// Both are structs of bpf2go or integers: no pointers, laid out as in the kernel.
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&k)), unsafe.Sizeof(k)), key)
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), value)
			return row(&k, &v)
		},
	}
}

func col(name string, kind maptable.Kind) maptable.Column {
	return maptable.Column{Name: name, Kind: kind}
}

// readers knows every map of bpf/lib/maps.h but metrics and events, which are not key and value. Ticks are as of now.
func readers(now uint32) map[string]reader {
	connColumns := []maptable.Column{
		col("protocol", maptable.Text), col("from", maptable.AddrPort), col("to", maptable.AddrPort),
		col("identity", maptable.Identity), col("endpoint", maptable.Endpoint), col("idle", maptable.Text),
		col("sent", maptable.Text), col("received", maptable.Text), col("flags", maptable.Text), col("as", maptable.AddrPort),
	}
	verdictColumns := []maptable.Column{
		col("table", maptable.Number), col("identity", maptable.Identity), col("class", maptable.Text), col("protocol", maptable.Text),
		col("ports", maptable.Text), col("verdict", maptable.Text), col("rule", maptable.Text), col("precedence", maptable.Number),
	}
	return map[string]reader{
		bpf.MapsMapPolicies: of(func(k *uint32, v *bpf.Policy) []any {
			if *v == (bpf.Policy{}) {
				return nil // nobody's id, or a pod that is closed
			}
			egress, ingress := v.Side[bpf.MapsSideSIDE_EGRESS], v.Side[bpf.MapsSideSIDE_INGRESS]
			return []any{number(*k), policyState(egress), number(egress.Table), rule(egress.DefaultRule),
				policyState(ingress), number(ingress.Table), rule(ingress.DefaultRule)}
		}, col("endpoint", maptable.Endpoint), col("egress", maptable.Text), col("egressTable", maptable.Number), col("egressDefault", maptable.Text),
			col("ingress", maptable.Text), col("ingressTable", maptable.Number), col("ingressDefault", maptable.Text)),

		bpf.MapsMapVerdicts: of(func(k *bpf.VerdictKey, v *bpf.VerdictEntry) []any {
			ports := ""
			if k.Proto != 0 {
				ports = strconv.Itoa(int(hostOrder(k.Port)))
			}
			return verdict(k, ports, v)
		}, verdictColumns...),
		bpf.MapsMapVerdictRanges: of(func(k *bpf.VerdictRangeKey, v *bpf.VerdictEntry) []any {
			bits := k.Prefixlen - bpf.VerdictRangeBits
			if bits > 16 {
				return verdict(&k.Key, fmt.Sprintf("?%d", k.Prefixlen), v)
			}
			first := hostOrder(k.Key.Port)
			return verdict(&k.Key, fmt.Sprintf("%d-%d", first, uint32(first)|0xffff>>bits), v)
		}, verdictColumns...),
		bpf.MapsMapClasses: of(func(k *bpf.PrefixKey, v *uint32) []any {
			return []any{prefix(k), class(*v)}
		}, col("prefix", maptable.Prefix), col("class", maptable.Text)),

		bpf.MapsMapEndpoints: of(func(k *bpf.Addr, v *bpf.Endpoint) []any {
			return []any{addr(*k), number(v.Id), number(v.Identity), ifname(v.Ifindex), mac(v.Mac), mac(v.HostMac),
				flags(uint32(v.Flags), flagName{1, "HOST"})}
		}, col("address", maptable.Address), col("endpoint", maptable.Endpoint), col("identity", maptable.Identity),
			col("interface", maptable.Interface), col("mac", maptable.Text), col("hostMAC", maptable.Text), col("flags", maptable.Text)),

		bpf.MapsMapPodInterfaces: of(func(k *uint32, v *bpf.PodInterface) []any {
			return []any{ifname(*k), number(v.Id), addr(v.Ipv4), addr(v.Ipv6), number(v.Identity), mac(v.Mac), mac(v.HostMac), flags(uint32(v.Flags))}
		}, col("interface", maptable.Interface), col("endpoint", maptable.Endpoint), col("ipv4", maptable.Address), col("ipv6", maptable.Address),
			col("identity", maptable.Identity), col("mac", maptable.Text), col("hostMAC", maptable.Text), col("flags", maptable.Text)),

		bpf.MapsMapPeers: of(func(k *bpf.Addr, v *bpf.Peer) []any {
			return []any{addr(*k), number(v.Identity), addr(v.Node), peerFlags(v.Flags)}
		}, col("address", maptable.Address), col("identity", maptable.Identity), col("node", maptable.Address), col("flags", maptable.Text)),

		bpf.MapsMapPrefixes: of(func(k *bpf.PrefixKey, v *bpf.Peer) []any {
			return []any{prefix(k), number(v.Identity), addr(v.Node), peerFlags(v.Flags)}
		}, col("prefix", maptable.Prefix), col("identity", maptable.Identity), col("node", maptable.Address), col("flags", maptable.Text)),

		bpf.MapsMapNodes: of(func(k *bpf.Addr, v *bpf.Node) []any {
			expires := ""
			if v.Mtu != 0 {
				expires = ticks(int32(v.MtuExpires - now))
			}
			return []any{addr(*k), number(v.Mtu), expires}
		}, col("node", maptable.Address), col("mtu", maptable.Number), col("expiresIn", maptable.Text)),

		bpf.MapsMapDevices: of(func(k *uint32, v *bpf.Device) []any {
			return []any{ifname(*k), addr(v.Ipv4), addr(v.Ipv6), mac(v.Mac), number(v.Mtu), flags(uint32(v.Flags))}
		}, col("interface", maptable.Interface), col("ipv4", maptable.Address), col("ipv6", maptable.Address), col("mac", maptable.Text),
			col("mtu", maptable.Number), col("flags", maptable.Text)),

		bpf.MapsMapConntrack: of(func(k *bpf.FlowKey, v *bpf.Conn) []any { return connection(k, v, now) }, connColumns...),
		bpf.MapsMapYoung: of(func(_ *uint32, v *bpf.YoungConn) []any {
			if v.Key.Proto == 0 || v.Conn.Over(v.Key.Proto, now) {
				return nil // a free place
			}
			return connection(&v.Key, &v.Conn, now)
		}, connColumns...),
		bpf.MapsMapUnanswered: of(func(k *bpf.FlowKey, v *bpf.Conn) []any { return connection(k, v, now) }, connColumns...),

		bpf.MapsMapAdvances: of(func(k *uint32, v *bpf.Advance) []any {
			if *v == (bpf.Advance{}) {
				return nil // nothing began there
			}
			return []any{number(*k), number(v.Left), ticks(int32(now - v.Window)), ticks(int32(now - v.Apart))}
		}, col("endpoint", maptable.Endpoint), col("left", maptable.Number), col("window", maptable.Text), col("apart", maptable.Text)),

		bpf.MapsMapFragments: of(func(k *bpf.FragmentKey, v *bpf.Fragment) []any {
			return []any{flow.ProtocolName(k.Proto), addrPort(k.Saddr, v.Sport), addrPort(k.Daddr, v.Dport),
				fmt.Sprintf("0x%08x", binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, k.Id))), ticks(int32(now - v.Seen))}
		}, col("protocol", maptable.Text), col("from", maptable.AddrPort), col("to", maptable.AddrPort), col("id", maptable.Text), col("idle", maptable.Text)),

		bpf.MapsMapServices: of(func(k *bpf.ServiceKey, v *bpf.Service) []any {
			return []any{addr(k.Addr), number(hostOrder(k.Port)), flow.ProtocolName(k.Proto), number(v.Id), number(v.Backends), flags(uint32(v.Flags))}
		}, col("address", maptable.Address), col("port", maptable.Number), col("protocol", maptable.Text), col("service", maptable.Number),
			col("backends", maptable.Number), col("flags", maptable.Text)),

		bpf.MapsMapBackends: of(func(k *bpf.BackendKey, v *bpf.Backend) []any {
			return []any{number(k.Service), number(k.Slot), addr(v.Addr), number(hostOrder(v.Port)), flags(uint32(v.Flags))}
		}, col("service", maptable.Number), col("slot", maptable.Number), col("address", maptable.Address), col("port", maptable.Number), col("flags", maptable.Text)),

		bpf.MapsMapServiceNames: of(func(k *bpf.ServiceNameKey, v *bpf.ServiceName) []any {
			return []any{strconv.FormatUint(k.Cookie, 10), flow.ProtocolName(k.Proto), addrPort(k.Addr, k.Port), addrPort(v.Addr, v.Port)}
		}, col("socket", maptable.Text), col("protocol", maptable.Text), col("backend", maptable.AddrPort), col("service", maptable.AddrPort)),

		bpf.MapsMapHooks: of(func(k *uint32, v *uint32) []any {
			return []any{flow.Hook(*k).String(), number(*v)}
		}, col("hook", maptable.Text), col("program", maptable.Number)),

		bpf.MapsMapDropBudgets: of(func(k *uint32, v *bpf.MapsDropBudget) []any {
			return []any{flow.Reason(*k).String(), number(v.Left), ticks(int32(now - v.Tick))}
		}, col("reason", maptable.Text), col("left", maptable.Number), col("refilled", maptable.Text)),

		bpf.MapsMapLiveSettings: of(func(_ *uint32, v *bpf.Settings) []any {
			return []any{number(v.Generation), number(v.Addresses), reportInterval(v.ReportInterval), flags(v.Flags)}
		}, col("generation", maptable.Number), col("addresses", maptable.Number), col("reportInterval", maptable.Text), col("flags", maptable.Text)),
	}
}

func reportInterval(n uint32) string {
	switch bpf.MapsReportInterval(n) {
	case bpf.MapsReportIntervalREPORT_NOTHING:
		return "off"
	case bpf.MapsReportIntervalREPORT_EVERY_PACKET:
		return "every packet"
	}
	return ticks(int32(n))
}

// readTable reads one pinned map into rows, sorted by their fields.
func readTable(p pin) (*maptable.Table, error) {
	m, err := p.open()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	t := &maptable.Table{Map: p.name, Layout: p.layout, Rows: [][]any{}}
	now := tick()
	r, known := readers(now)[p.name]
	switch {
	case m.Type() == ebpf.RingBuf:
		return nil, fmt.Errorf("map %s is a ring buffer that the agent alone reads: see inspect monitor", p.name)
	case p.name == bpf.MapsMapMetrics && m.Type() == ebpf.PerCPUArray && m.ValueSize() == uint32(unsafe.Sizeof(bpf.Counter{})):
		err = readMetrics(m, t)
	case m.Type() == ebpf.ArrayOfMaps || m.Type() == ebpf.HashOfMaps:
		err = readInner(m, t, r)
	case perCPU(m.Type()):
		err = readPerCPU(m, t, r, known)
	default:
		if !known || r.key != int(m.KeySize()) || r.value != int(m.ValueSize()) {
			r = rawReader()
			t.Remark = unknownLayout
		}
		t.Columns = r.columns
		err = readRows(m, t, r)
	}
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", p.name, err)
	}
	slices.SortFunc(t.Rows, func(a, b []any) int { return compareRows(t.Columns, a, b) })
	return t, nil
}

func readRows(m *ebpf.Map, t *maptable.Table, r reader) error {
	complete, err := walk(m, func(key, value []byte) error {
		if row := r.row(key, value); row != nil {
			t.Rows = append(t.Rows, row)
		}
		return nil
	})
	if err == nil && !complete {
		t.Remark = "the map changed faster than it could be read: entries are missing"
	}
	return err
}

func rawReader() reader {
	return reader{
		columns: []maptable.Column{col("key", maptable.Text), col("value", maptable.Text)},
		row:     func(key, value []byte) []any { return []any{hex.EncodeToString(key), hex.EncodeToString(value)} },
	}
}

// readMetrics sums over CPUs what ended with each reason at each hook, leaving out what never did.
func readMetrics(m *ebpf.Map, t *maptable.Table) error {
	t.Columns = []maptable.Column{
		col("hook", maptable.Text), col("reason", maptable.Text), col("dropped", maptable.Text),
		col("packets", maptable.Number), col("bytes", maptable.Bytes), col("text", maptable.Text),
	}
	var perCPU []bpf.Counter
	for i := range m.MaxEntries() {
		if err := m.Lookup(i, &perCPU); err != nil {
			return fmt.Errorf("read counter %d: %w", i, err)
		}
		var sum bpf.Counter
		for _, c := range perCPU {
			sum.Packets, sum.Bytes = sum.Packets+c.Packets, sum.Bytes+c.Bytes
		}
		hook, reason, ok := flow.SplitMetric(i)
		if sum.Packets == 0 || !ok {
			continue
		}
		switch bpf.MapsMetricSlot(reason) { // what the programs count besides packets
		case bpf.MapsMetricSlotMETRIC_EVENTS_LIMITED:
			t.Rows = append(t.Rows, []any{hook.String(), "EVENTS_LIMITED", false, sum.Packets, sum.Bytes, "drops that were counted and not told, for their reason had many"})
		case bpf.MapsMetricSlotMETRIC_EVENTS_LOST:
			t.Rows = append(t.Rows, []any{hook.String(), "EVENTS_LOST", false, sum.Packets, sum.Bytes, "events that the agent was too slow to take"})
		default:
			t.Rows = append(t.Rows, []any{hook.String(), reason.String(), reason.Dropped(), sum.Packets, sum.Bytes, reason.Text()})
		}
	}
	return nil
}

func perCPU(t ebpf.MapType) bool {
	return t == ebpf.PerCPUArray || t == ebpf.PerCPUHash || t == ebpf.LRUCPUHash
}

// readPerCPU shows a row for each key and CPU, leaving out values that are all zeroes.
func readPerCPU(m *ebpf.Map, t *maptable.Table, r reader, known bool) error {
	if !known || r.key != int(m.KeySize()) || r.value != int(m.ValueSize()) {
		r = rawReader()
		t.Remark = unknownLayout
	}
	t.Columns = append([]maptable.Column{col("cpu", maptable.Number)}, r.columns...)
	key := make([]byte, m.KeySize())
	var values [][]byte
	entries := m.Iterate()
	for entries.Next(&key, &values) {
		for cpu, value := range values {
			if len(bytes.Trim(value, "\x00")) == 0 {
				continue
			}
			if row := r.row(key, value); row != nil {
				t.Rows = append(t.Rows, append([]any{uint64(cpu)}, row...))
			}
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read map: %w", err)
	}
	return nil
}

// readInner shows the maps in a map. The kernel gives an inner map's number to anybody who may read the outer one, but
// opens it by number for CAP_SYS_ADMIN alone: without, the numbers are all that can be shown.
func readInner(m *ebpf.Map, t *maptable.Table, r reader) error {
	var refused bool
	inner := []maptable.Column{col("table", maptable.Endpoint)}
	_, err := walk(m, func(key, value []byte) error {
		if len(key) != 4 || len(value) != 4 {
			return errors.New("keys or values are not numbers")
		}
		outer, id := binary.NativeEndian.Uint32(key), binary.NativeEndian.Uint32(value)
		im, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if errors.Is(err, unix.EPERM) {
			refused = true
			t.Rows = append(t.Rows, []any{outer, id})
			return nil
		}
		if errors.Is(err, unix.ENOENT) {
			return nil // its endpoint has just gone
		}
		if err != nil {
			return err
		}
		defer im.Close()
		if r.row == nil || r.key != int(im.KeySize()) || r.value != int(im.ValueSize()) {
			t.Rows = append(t.Rows, []any{outer, id})
			refused = true
			return nil
		}
		_, err = walk(im, func(k, v []byte) error {
			t.Rows = append(t.Rows, append([]any{outer}, r.row(k, v)...))
			return nil
		})
		return err
	})
	if refused {
		t.Columns = append(inner, col("map", maptable.Number))
		// Rows of opened maps, if any came before, would not fit these columns.
		t.Rows = slices.DeleteFunc(t.Rows, func(row []any) bool { return len(row) != 2 })
		t.Remark = "opening the inner maps needs CAP_SYS_ADMIN: only their numbers are shown"
		return err
	}
	t.Columns = append(inner, r.columns...)
	return err
}

// connection shows a flow in the direction in which it began.
func connection(k *bpf.FlowKey, v *bpf.Conn, now uint32) []any {
	from, to := addrPort(k.Lo, k.LoPort), addrPort(k.Hi, k.HiPort)
	if v.Flags&uint16(bpf.MapsConnFlagsCONN_FROM_HI) != 0 {
		from, to = to, from
	}
	as := ""
	if v.Flags&uint16(bpf.MapsConnFlagsCONN_MASQUERADED|bpf.MapsConnFlagsCONN_POINTER) != 0 {
		as = addrPort(v.Addr, v.Port)
	}
	set := flags(uint32(v.Flags)&^uint32(bpf.MapsConnFlagsCONN_FROM_HI),
		flagName{uint32(bpf.MapsConnFlagsCONN_ANSWERED), "ANSWERED"}, flagName{uint32(bpf.MapsConnFlagsCONN_SETTLED), "SETTLED"}, flagName{uint32(bpf.MapsConnFlagsCONN_ADVANCED), "ADVANCED"}, flagName{uint32(bpf.MapsConnFlagsCONN_YOUNG), "YOUNG"}, flagName{uint32(bpf.MapsConnFlagsCONN_POINTER), "TRANSLATED"},
		flagName{uint32(bpf.MapsConnFlagsCONN_MASQUERADED), "MASQUERADED"}, flagName{uint32(bpf.MapsConnFlagsCONN_STACK), "STACK"},
		flagName{uint32(bpf.MapsConnFlagsCONN_TUNNEL), "TUNNEL"}, flagName{uint32(bpf.MapsConnFlagsCONN_CLOSING), "CLOSING"})
	return []any{flow.ProtocolName(k.Proto), from, to, number(v.Identity), number(v.Endpoint), ticks(int32(now - v.Seen)),
		strings.Join(flow.TCPFlagNames(v.TcpFlags[0]), ","), strings.Join(flow.TCPFlagNames(v.TcpFlags[1]), ","), set, as}
}

// tick is the unit of bpf/lib: 2^30 ns of the monotonic clock.
func tick() uint32 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint32(uint64(ts.Nano()) >> 30)
}

func ticks(n int32) string {
	seconds := int64(n) << 30 / 1e9
	return strconv.FormatInt(max(seconds, 0), 10) + "s"
}

func number[N uint16 | uint32](n N) uint64 { return uint64(n) }

func addr(a bpf.Addr) string {
	if ip := a.IP(); ip.IsValid() {
		return ip.String()
	}
	return ""
}

// rule is a number for people to compare with what names rules: hexadecimal, "" for none.
func rule(n uint32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%08x", n)
}

func class(n uint32) string { return strconv.FormatUint(uint64(n&^bpf.PeerClassBit), 10) }

func policyState(s bpf.PolicySide) string {
	switch {
	case s.Flags == 0:
		return "closed"
	case bpf.MapsPolicyFlags(s.Flags)&bpf.MapsPolicyFlagsPOLICY_NONE != 0:
		return "allowed"
	}
	return "enforced"
}

func verdict(k *bpf.VerdictKey, ports string, v *bpf.VerdictEntry) []any {
	who, which, protocol := "", "", "any"
	switch {
	case k.Peer&bpf.PeerClassBit != 0:
		which = class(k.Peer)
	case k.Peer != 0:
		who = strconv.FormatUint(uint64(k.Peer), 10)
	}
	if k.Proto != 0 {
		protocol = flow.ProtocolName(k.Proto)
	}
	says := fmt.Sprintf("?%d", v.Verdict)
	switch bpf.MapsVerdict(v.Verdict) {
	case bpf.MapsVerdictVERDICT_ALLOWED:
		says = "allow"
	case bpf.MapsVerdictVERDICT_DENIED:
		says = "deny"
	}
	return []any{number(k.Table), who, which, protocol, ports, says, rule(v.Rule), number(v.Precedence)}
}

func prefix(k *bpf.PrefixKey) string {
	if k.Prefixlen > 128 {
		return fmt.Sprintf("%s/?%d", netip.AddrFrom16(k.Addr.B), k.Prefixlen)
	}
	return k.Prefix().String()
}

// addrPort takes the port as it lies in memory, in network order.
func addrPort(a bpf.Addr, port uint16) string {
	ip := a.IP()
	if !ip.IsValid() {
		ip = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(ip, hostOrder(port)).String()
}

func hostOrder(port uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, port))
}

func mac(m [6]uint8) string {
	if m == [6]uint8{} {
		return ""
	}
	return net.HardwareAddr(m[:]).String()
}

func ifname(index uint32) string {
	if index == 0 {
		return ""
	}
	if iface, err := net.InterfaceByIndex(int(index)); err == nil {
		return iface.Name
	}
	return "if" + strconv.FormatUint(uint64(index), 10)
}

type flagName struct {
	bit  uint32
	name string
}

// flags names what is set; a bit without a name shows as a number.
func flags(set uint32, names ...flagName) string {
	var all []string
	for _, f := range names {
		if set&f.bit != 0 {
			all = append(all, f.name)
			set &^= f.bit
		}
	}
	if set != 0 {
		all = append(all, fmt.Sprintf("0x%x", set))
	}
	return strings.Join(all, ",")
}

func peerFlags(set uint32) string {
	return flags(set, flagName{uint32(bpf.MapsPeerFlagsPEER_TUNNEL), "TUNNEL"}, flagName{uint32(bpf.MapsPeerFlagsPEER_NATIVE), "NATIVE"},
		flagName{uint32(bpf.MapsPeerFlagsPEER_NODE), "NODE"}, flagName{uint32(bpf.MapsPeerFlagsPEER_CLUSTER), "CLUSTER"},
		flagName{uint32(bpf.MapsPeerFlagsPEER_NO_MASQUERADE), "NO_MASQUERADE"}, flagName{uint32(bpf.MapsPeerFlagsPEER_DIRECT), "DIRECT"})
}

// compareRows orders by the fields from the left: addresses and prefixes by value, numbers as numbers.
func compareRows(columns []maptable.Column, a, b []any) int {
	for i := range columns {
		if c := compareFields(columns[i].Kind, a[i], b[i]); c != 0 {
			return c
		}
	}
	return 0
}

func compareFields(kind maptable.Kind, a, b any) int {
	if x, ok := a.(uint64); ok {
		y, _ := b.(uint64)
		return cmp.Compare(x, y)
	}
	if x, ok := a.(uint32); ok {
		y, _ := b.(uint32)
		return cmp.Compare(x, y)
	}
	x, y := maptable.FieldText(a), maptable.FieldText(b)
	switch kind {
	case maptable.Address:
		p, err1 := netip.ParseAddr(x)
		q, err2 := netip.ParseAddr(y)
		if err1 == nil && err2 == nil {
			return p.Compare(q)
		}
	case maptable.Prefix:
		p, err1 := netip.ParsePrefix(x)
		q, err2 := netip.ParsePrefix(y)
		if err1 == nil && err2 == nil {
			return cmp.Or(p.Addr().Compare(q.Addr()), cmp.Compare(p.Bits(), q.Bits()))
		}
	}
	return cmp.Compare(x, y)
}
