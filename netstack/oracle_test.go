package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sluice/internal/host"
	"sluice/internal/sysctl"
	"sluice/packet"
)

// twin is a kernel's routing state and a FIB that are given the same commands.
type twin struct {
	t     *testing.T
	ns    *host.Namespace
	f     *FIB
	names []string
	index map[int]string // the kernel's
	kidx  map[string]int
}

func newTwin(t *testing.T, ifaces int) *twin {
	w := &twin{t: t, ns: testNS(t, "fib"), f: NewFIB(sysctl.NewSet()), index: map[int]string{1: "lo"}, kidx: map[string]int{"lo": 1}}
	w.sysctl("net.ipv4.ip_forward", 1)
	w.sysctl("net.ipv6.conf.all.forwarding", 1)
	w.sysctl("net.ipv4.conf.default.rp_filter", 0)
	w.sysctl("net.ipv4.conf.all.rp_filter", 0)
	for i := range ifaces {
		name := fmt.Sprintf("d%d", i)
		w.names = append(w.names, name)
		w.ip("tuntap", "add", name, "mode", "tun", "multi_queue")
		w.ip("link", "set", name, "addrgenmode", "none")
		openTUN(t, TUNConfig{Name: name, Index: i + 2, Host: &host.End{NetNS: w.ns.String()}}) // gives it a carrier
		w.ip("addr", "add", linkLocal(name).String()+"/64", "dev", name, "nodad")
		w.must(w.f.Update(func(tx *Tx) error { return tx.AddIface(packet.NewIface(i+2, name, 1500)) }))
		var d host.Device
		w.must(w.ns.Do(func() (err error) { d, err = host.Look(name); return err }))
		w.index[d.Index], w.kidx[name] = name, d.Index
	}
	return w
}

func (w *twin) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *twin) ip(args ...string) {
	w.t.Helper()
	run(w.t, append([]string{"ip", "-n", w.ns.String()}, args...)...)
}

// try runs an `ip` command that may be refused.
func (w *twin) try(args ...string) (string, bool) {
	out, err := exec.Command("ip", append([]string{"-n", w.ns.String()}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err == nil
}

func (w *twin) sysctl(name string, x int) {
	w.t.Helper()
	w.must(w.ns.Do(func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(fmt.Sprint(x)), 0)
	}))
	if v := w.f.conf.set.Lookup(name); v != nil {
		w.must(v.Set(fmt.Sprint(x)))
	} else {
		w.t.Fatalf("no tunable %s", name)
	}
}

func (w *twin) addr(p string, i int) {
	w.t.Helper()
	args := []string{"addr", "add", p, "dev", w.names[i]}
	if strings.Contains(p, ":") {
		args = append(args, "nodad")
	}
	_, ok := w.try(args...)
	err := w.f.Update(func(tx *Tx) error { return tx.AddAddr(i+2, netip.MustParsePrefix(p)) })
	if ok != (err == nil) {
		w.t.Errorf("addr add %s dev %s: the kernel %v, we %v", p, w.names[i], ok, err)
	}
}

func (w *twin) delAddr(p string, i int) {
	w.t.Helper()
	_, ok := w.try("addr", "del", p, "dev", w.names[i])
	err := w.f.Update(func(tx *Tx) error { return tx.DelAddr(i+2, netip.MustParsePrefix(p)) })
	if ok != (err == nil) {
		w.t.Errorf("addr del %s dev %s: the kernel %v, we %v", p, w.names[i], ok, err)
	}
}

// route adds a route to both; they have to agree on whether it can be, and if words, why not.
func (w *twin) route(r RouteSpec, words bool) bool {
	w.t.Helper()
	args := []string{"-4", "route", "add"}
	if r.To.Addr().Is6() {
		args[0] = "-6"
	}
	if r.Type > RouteUnicast {
		args = append(args, r.Type.String())
	}
	args = append(args, r.To.String())
	if r.Via.IsValid() {
		args = append(args, "via", r.Via.String())
	}
	if r.Dev != "" {
		args = append(args, "dev", r.Dev)
	}
	if r.Table != 0 {
		args = append(args, "table", fmt.Sprint(r.Table))
	}
	if r.Metric != 0 {
		args = append(args, "metric", fmt.Sprint(r.Metric))
	}
	if r.Src.IsValid() {
		args = append(args, "src", r.Src.String())
	}
	if r.Onlink {
		args = append(args, "onlink")
	}
	if r.MTU != 0 {
		args = append(args, "mtu", fmt.Sprint(r.MTU))
	}
	out, ok := w.try(args...)
	err := w.f.Update(func(tx *Tx) error { return tx.AddRoute(r) })
	if ok != (err == nil) {
		w.t.Errorf("ip %s: the kernel says %v %q, we %v", strings.Join(args, " "), ok, out, err)
	} else if words && !ok && !sameError(out, err) {
		w.t.Errorf("ip %s: the kernel says %q, we %q", strings.Join(args, " "), out, err)
	}
	return ok && err == nil
}

func sameError(out string, err error) bool {
	out = strings.TrimPrefix(strings.TrimPrefix(out, "Error: "), "RTNETLINK answers: ")
	return strings.EqualFold(strings.TrimSuffix(out, "."), strings.TrimSuffix(err.Error(), "."))
}

func (w *twin) rule(r Rule) {
	w.t.Helper()
	args := []string{"-4", "rule", "add", "pref", fmt.Sprint(r.Priority)}
	if r.Family == packet.IPv6 {
		args[0] = "-6"
	}
	if r.Not {
		args = append(args, "not")
	}
	if r.From.IsValid() {
		args = append(args, "from", r.From.String())
	}
	if r.To.IsValid() {
		args = append(args, "to", r.To.String())
	}
	if r.IIF != "" {
		args = append(args, "iif", r.IIF)
	}
	if r.OIF != "" {
		args = append(args, "oif", r.OIF)
	}
	if r.Mask != 0 {
		args = append(args, "fwmark", fmt.Sprintf("%#x/%#x", r.Mark, r.Mask))
	}
	if r.TOS != 0 {
		args = append(args, "tos", fmt.Sprintf("%#x", r.TOS))
	}
	if r.Action > RouteUnicast {
		args = append(args, r.Action.String())
	} else {
		args = append(args, "table", fmt.Sprint(r.Table))
	}
	out, ok := w.try(args...)
	err := w.f.Update(func(tx *Tx) error { return tx.AddRule(r) })
	if ok != (err == nil) {
		w.t.Errorf("ip %s: the kernel says %v %q, we %v", strings.Join(args, " "), ok, out, err)
	}
}

// answer is what both are asked for.
type answer struct {
	err   unix.Errno
	typ   RouteType
	dev   string
	via   netip.Addr
	table uint32
	src   netip.Addr
}

func (a answer) String() string {
	if a.err != 0 {
		return a.err.Error()
	}
	return fmt.Sprintf("%s dev %s via %s table %d src %s", a.typ, a.dev, a.via, a.table, a.src)
}

type question struct {
	dst, src netip.Addr
	iif, oif string
	mark     uint32
	tos      uint8
}

func (q question) String() string {
	return fmt.Sprintf("ip route get %s from %s iif %q oif %q mark %#x tos %#x", q.dst, q.src, q.iif, q.oif, q.mark, q.tos)
}

// kernel is `ip route get`.
func (w *twin) kernel(q question) answer {
	w.t.Helper()
	var a answer
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_REQUEST)
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Dst_len: uint8(q.dst.BitLen()), Tos: q.tos, Flags: unix.RTM_F_LOOKUP_TABLE}}
	if q.dst.Is6() {
		msg.Family = unix.AF_INET6
	}
	if q.src.IsValid() {
		msg.Src_len = uint8(q.src.BitLen())
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, q.dst.AsSlice()))
	if q.src.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_SRC, q.src.AsSlice()))
	}
	u32 := func(typ int, x uint32) {
		if x != 0 {
			req.AddData(nl.NewRtAttr(typ, binary.NativeEndian.AppendUint32(nil, x)))
		}
	}
	u32(unix.RTA_IIF, uint32(w.kidx[q.iif]))
	u32(unix.RTA_OIF, uint32(w.kidx[q.oif]))
	u32(unix.RTA_MARK, q.mark)
	var out [][]byte
	err := w.ns.Do(func() (err error) { out, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE); return err })
	if err != nil {
		if !errors.As(err, &a.err) {
			w.t.Fatal(err)
		}
		return a
	}
	m := nl.DeserializeRtMsg(out[0])
	a.typ, a.table = RouteType(m.Type), uint32(m.Table)
	attrs, err := nl.ParseRouteAttr(out[0][m.Len():])
	w.must(err)
	for _, at := range attrs {
		switch at.Attr.Type {
		case unix.RTA_OIF:
			a.dev = w.index[int(binary.NativeEndian.Uint32(at.Value))]
		case unix.RTA_GATEWAY:
			a.via, _ = netip.AddrFromSlice(at.Value)
		case unix.RTA_TABLE:
			a.table = binary.NativeEndian.Uint32(at.Value)
		case unix.RTA_PREFSRC:
			a.src, _ = netip.AddrFromSlice(at.Value)
		}
	}
	return a
}

// ours answers the same with the FIB.
func (w *twin) ours(q question) answer {
	s := w.f.Load()
	fam := familyOf(q.dst)
	p := packet.New()
	b := make([]byte, 40)
	if fam == packet.IPv4 {
		b[0], b[1], b[8], b[9] = 0x45, q.tos, 64, 17
		if q.src.IsValid() {
			copy(b[12:], q.src.AsSlice())
		}
		copy(b[16:], q.dst.AsSlice())
	} else {
		b[0], b[1], b[6], b[7] = 0x60|q.tos>>4, q.tos<<4, 59, 64
		if q.src.IsValid() {
			copy(b[8:], q.src.AsSlice())
		}
		copy(b[24:], q.dst.AsSlice())
	}
	p.SetBytes(b)
	p.Family, p.Mark = fam, q.mark
	var r Route
	if q.iif != "" {
		p.In = s.IfaceByName(q.iif)
		if reason := s.Input(p, &r); reason != 0 {
			return answer{err: unix.EINVAL}
		}
	} else {
		s.OutputVia(p, s.IfaceByName(q.oif), &r)
	}
	var a answer
	switch r.Type {
	case RouteNone:
		return answer{err: unix.ENETUNREACH}
	case RouteBlackhole:
		return answer{err: unix.EINVAL}
	case RouteUnreachable:
		return answer{err: unix.EHOSTUNREACH}
	case RouteProhibit:
		return answer{err: unix.EACCES}
	}
	a.typ, a.table, a.dev = r.Type, r.Table, r.Dev.Name
	if r.Gateway {
		a.via = Addr(fam, r.NextHop)
	}
	if q.iif == "" && !q.src.IsValid() {
		if src, ok := s.Source(p, &r); ok {
			a.src = Addr(fam, src)
		}
	}
	return a
}

// compare asks both. What the kernel's answer leaves open is not compared.
func (w *twin) compare(q question) bool {
	w.t.Helper()
	k, o := w.kernel(q), w.ours(q)
	if k.typ == RouteLocal || k.typ == RouteBroadcast {
		k.table, o.table = 0, 0 // without policy rules the kernel's local and main tables are one
	}
	if k.typ == RouteLocal || k.typ == RouteAnycast || k.typ == RouteBroadcast || k.typ == RouteMulticast {
		if q.iif != "" {
			k.dev, o.dev = "", "" // the kernel answers lo for what goes to itself
		}
	}
	if q.iif != "" || q.src.IsValid() {
		k.src, o.src = netip.Addr{}, netip.Addr{}
	}
	if q.iif != "" && k.typ == RouteBroadcast {
		k.table, o.table = 0, 0
	}
	if k != o {
		w.t.Errorf("%v:\n  kernel: %v\n  we:     %v", q, k, o)
		return false
	}
	return true
}

func randAddr4(r *rand.Rand) netip.Addr {
	// Few networks, so that prefixes nest and queries hit.
	return netip.AddrFrom4([4]byte{10, byte(r.Intn(4)), byte(r.Intn(4)), byte(r.Intn(256))})
}

func randAddr6(r *rand.Rand) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 0, 0, 0, byte(r.Intn(4)), 0, byte(r.Intn(4)), 14: byte(r.Intn(2)), 15: byte(r.Intn(6))})
}

func TestRoutesLikeTheKernel(t *testing.T) {
	for seed := range int64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewSource(seed))
			w := newTwin(t, 4)
			w.populate(r)
			if t.Failed() {
				return
			}
			bad := 0
			for i := range 3000 {
				if i%200 == 199 {
					w.mutate(r)
				}
				if !w.compare(w.randQuestion(r)) {
					if bad++; bad > 8 {
						t.Log(run(t, "ip", "-n", w.ns.String(), "rule"), run(t, "ip", "-n", w.ns.String(), "-6", "rule"),
							run(t, "ip", "-n", w.ns.String(), "route", "show", "table", "all"), run(t, "ip", "-n", w.ns.String(), "addr"))
						t.Fatal("too many differences")
					}
				}
			}
		})
	}
}

func (w *twin) populate(r *rand.Rand) {
	for i := range w.names {
		for range 1 + r.Intn(3) {
			w.addr(netip.PrefixFrom(randAddr4(r), []int{16, 24, 24, 30, 31, 32}[r.Intn(6)]).String(), i)
			a := randAddr6(r).As16()
			a[15] |= 1 // not the network's anycast address
			w.addr(netip.PrefixFrom(netip.AddrFrom16(a), []int{48, 64, 64, 128}[r.Intn(4)]).String(), i)
		}
	}
	randTable := func() uint32 { return []uint32{0, 0, 100, 101, TableDefault}[r.Intn(5)] }
	for range 60 {
		is4 := r.Intn(2) == 0
		spec := RouteSpec{Table: randTable(), Metric: uint32(r.Intn(3) * 10)}
		gw := randAddr4(r)
		spec.To = netip.PrefixFrom(randAddr4(r), []int{0, 8, 14, 15, 16, 22, 24, 28, 32}[r.Intn(9)]).Masked()
		if !is4 {
			gw = randAddr6(r)
			if r.Intn(3) == 0 {
				gw = netip.MustParseAddr("fe80::99")
			}
			spec.To = netip.PrefixFrom(randAddr6(r), []int{0, 8, 46, 48, 62, 64, 120, 128}[r.Intn(8)]).Masked()
		}
		switch r.Intn(6) {
		case 0:
			spec.Type = []RouteType{RouteBlackhole, RouteUnreachable, RouteProhibit, RouteThrow}[r.Intn(4)]
		case 1:
			spec.Dev = w.names[r.Intn(len(w.names))]
		case 2:
			spec.Dev, spec.Via, spec.Onlink = w.names[r.Intn(len(w.names))], gw, true
		case 3:
			spec.Dev, spec.Via = w.names[r.Intn(len(w.names))], gw
		default:
			spec.Via = gw
		}
		if r.Intn(5) == 0 && spec.Type == 0 {
			if spec.Src = w.ownAddr(r); spec.Src.Is4() != is4 {
				spec.Src = netip.Addr{}
			}
		}
		w.route(spec, true)
	}
	for range r.Intn(7) {
		w.rule(w.randRule(r))
	}
}

func (w *twin) ownAddr(r *rand.Rand) netip.Addr {
	a := w.f.Load().Addrs(2 + r.Intn(len(w.names)))
	return a[r.Intn(len(a))].Prefix.Addr()
}

// mutate changes one thing on both sides.
func (w *twin) mutate(r *rand.Rand) {
	w.t.Helper()
	i := r.Intn(len(w.names))
	conf := func(name string, x int) {
		where := append(w.names, "all", "default")[r.Intn(len(w.names)+2)]
		w.sysctl("net.ipv4.conf."+where+"."+name, x)
	}
	switch r.Intn(8) {
	case 0, 1:
		conf("rp_filter", r.Intn(3))
	case 2:
		conf("accept_local", r.Intn(2))
	case 3:
		conf("src_valid_mark", r.Intn(2))
	case 4:
		conf("route_localnet", r.Intn(2))
	case 5:
		addrs := w.f.Load().Addrs(i + 2)
		if a := addrs[r.Intn(len(addrs))]; !a.Auto {
			w.delAddr(a.Prefix.String(), i)
		}
	case 6:
		w.addr(netip.PrefixFrom(randAddr4(r), 24).String(), i)
	case 7:
		w.rule(w.randRule(r))
	}
}

func (w *twin) randRule(r *rand.Rand) Rule {
	ru := Rule{Family: packet.IPv4, Priority: uint32(1 + r.Intn(40000)), Table: []uint32{100, 101, TableMain, 102}[r.Intn(4)]}
	if r.Intn(2) == 0 {
		ru.Family = packet.IPv6
	}
	prefix := func() netip.Prefix {
		if ru.Family == packet.IPv4 {
			return netip.PrefixFrom(randAddr4(r), []int{14, 16, 24}[r.Intn(3)]).Masked()
		}
		return netip.PrefixFrom(randAddr6(r), []int{46, 48, 64}[r.Intn(3)]).Masked()
	}
	for range 1 + r.Intn(2) {
		switch r.Intn(6) {
		case 0:
			ru.From = prefix()
		case 1:
			ru.To = prefix()
		case 2:
			ru.IIF = append(w.names, "lo", "none0")[r.Intn(len(w.names)+2)]
		case 3:
			ru.Mark, ru.Mask = uint32(1+r.Intn(3)), 3
		case 4:
			ru.TOS = 0x10
		case 5:
			ru.OIF = w.names[r.Intn(len(w.names))]
		}
	}
	if r.Intn(4) == 0 {
		ru.Table, ru.Action = 0, []RouteType{RouteBlackhole, RouteUnreachable, RouteProhibit}[r.Intn(3)]
	}
	ru.Not = r.Intn(5) == 0
	return ru
}

func (w *twin) randQuestion(r *rand.Rand) question {
	var q question
	addr := randAddr4
	if r.Intn(2) == 0 {
		addr = randAddr6
	}
	q.dst = addr(r)
	if r.Intn(10) == 0 {
		q.dst = netip.MustParseAddr([]string{"127.0.0.1", "192.0.2.1", "10.0.1.255", "10.0.0.0"}[r.Intn(4)])
		addr = randAddr4
	}
	if r.Intn(2) == 0 {
		q.iif = w.names[r.Intn(len(w.names))]
		q.src = addr(r)
	} else if r.Intn(4) == 0 {
		q.oif = w.names[r.Intn(len(w.names))]
	}
	if r.Intn(2) == 0 {
		q.mark = uint32(r.Intn(5))
	}
	if r.Intn(4) == 0 {
		q.tos = 0x10
	}
	return q
}
