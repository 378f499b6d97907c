package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is what a configuration says of the kernel's end of a TUN device.
type End struct {
	NetNS     string         // see OpenNamespace
	MTU       int            // bytes; 0: left as it is
	Addresses []netip.Prefix // the kernel's own addresses there, host bits kept
	Routes    []Route
}

// Route is a route over the device in the kernel's main table.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr // the zero Addr: directly over the device
	Src    netip.Addr // the zero Addr: the kernel's choice
	Metric int        // 0: the kernel's default
}

// txQueueLen is a device's queue towards the router, in frames. TUN's own
// default of 500 is short for a burst of small packets.
const txQueueLen = 1000

// Apply makes the kernel's end of device name as end says, in the namespace
// that the calling thread is in. What is so already is not touched, so a
// process without privilege gets by on a device that was set up for it;
// otherwise the error names the commands that are missing. Addresses and routes
// that was names and end does not are removed; was may be nil.
func Apply(ns *Namespace, name string, end, was *End) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	// Removing an address takes its secondaries along: what is missing shows only afterwards.
	old, err := removals(h, link, end, was)
	if err != nil {
		return err
	}
	for i, s := range old {
		if err := s.do(); err != nil {
			rest, perr := plan(h, link, end)
			return errors.Join(perr, missing(ns, name, append(old[i:], rest...), err))
		}
	}
	steps, err := plan(h, link, end)
	if err != nil {
		return err
	}
	for i, s := range steps {
		if err := s.do(); err != nil {
			return missing(ns, name, steps[i:], err)
		}
	}
	if len(steps) > 0 {
		settle(h, end)
	}
	return nil
}

// missing explains why the first of steps failed; without privilege, by the commands that do them.
func missing(ns *Namespace, name string, steps []step, err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("device %s: %s%s: %w", name, ns.ip(), steps[0].text, err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "device %s is not set up, and setting it up takes CAP_NET_ADMIN. As root:", name)
	for _, s := range steps {
		b.WriteString("\n  " + ns.ip() + s.text)
	}
	return errors.New(b.String())
}

// settle waits until the kernel delivers to its new IPv6 addresses: they become
// local some milliseconds after they were added, and until then it drops what
// is for them.
func settle(h *netlink.Handle, end *End) {
	limit := time.Now().Add(time.Second)
	for _, p := range end.Addresses {
		for p.Addr().Is6() && time.Now().Before(limit) {
			r, err := h.RouteGet(p.Addr().AsSlice())
			if err == nil && len(r) > 0 && r[0].Type == unix.RTN_LOCAL {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// step is one change, and the `ip` command that does the same.
type step struct {
	text string
	do   func() error
}

// Tune gives a new device, not yet up, a longer queue, and keeps the kernel
// from talking IPv6 on it by itself.
func Tune(name string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	quiet(name)
	if err := h.LinkSetTxQLen(link, txQueueLen); err != nil {
		return fmt.Errorf("device %s: txqueuelen %d: %w", name, txQueueLen, err)
	}
	return nil
}

// quiet keeps the kernel from talking IPv6 on the device by itself: router
// solicitations, duplicate address detection, autoconfiguration.
func quiet(name string) {
	dir := "net/ipv6/conf/" + name + "/"
	for _, k := range []string{"accept_ra", "autoconf", "accept_dad", "dad_transmits", "router_solicitations"} {
		writeSysctl(dir+k, "0")
	}
}

// plan lists what has to change for the device to be as end says, in order.
func plan(h *netlink.Handle, link netlink.Link, end *End) ([]step, error) {
	at := link.Attrs()
	name := at.Name
	var steps []step
	if end.MTU != 0 && at.MTU != end.MTU {
		steps = append(steps, step{fmt.Sprintf("link set %s mtu %d", name, end.MTU), func() error { return h.LinkSetMTU(link, end.MTU) }})
	}
	have, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("device %s: addresses: %w", name, err)
	}
	for _, p := range end.Addresses {
		if !hasAddr(have, p) {
			a := &netlink.Addr{IPNet: ipNet(p)}
			text := fmt.Sprintf("addr add %s dev %s", p, name)
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
				text += " nodad"
			}
			steps = append(steps, step{text, func() error { return h.AddrReplace(link, a) }})
		}
	}
	up := at.Flags&net.FlagUp != 0
	if !up {
		steps = append(steps, step{"link set " + name + " up", func() error {
			quiet(name)
			return h.LinkSetUp(link)
		}})
	}
	for _, r := range end.Routes {
		nr := netlinkRoute(at.Index, r)
		if up && len(steps) == 0 && hasRoute(h, nr) {
			continue
		}
		steps = append(steps, step{"route replace " + r.String() + " dev " + name, func() error { return h.RouteReplace(nr) }})
	}
	return steps, nil
}

// removals lists what was names, end does not, and is there.
func removals(h *netlink.Handle, link netlink.Link, end, was *End) ([]step, error) {
	if was == nil {
		return nil, nil
	}
	name := link.Attrs().Name
	var steps []step
	for _, r := range was.Routes {
		if nr := netlinkRoute(link.Attrs().Index, r); !slices.Contains(end.Routes, r) && hasRoute(h, nr) {
			steps = append(steps, step{"route del " + r.String() + " dev " + name, func() error { return h.RouteDel(nr) }})
		}
	}
	have, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("device %s: addresses: %w", name, err)
	}
	for _, p := range was.Addresses {
		if !slices.Contains(end.Addresses, p) && hasAddr(have, p) {
			steps = append(steps, step{fmt.Sprintf("addr del %s dev %s", p, name), func() error {
				err := h.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)})
				if errors.Is(err, unix.EADDRNOTAVAIL) { // went along with the primary address
					return nil
				}
				return err
			}})
		}
	}
	return steps, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func hasAddr(have []netlink.Addr, p netip.Prefix) bool {
	for _, a := range have {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ones, _ := a.Mask.Size(); ok && ip.Unmap() == p.Addr() && ones == p.Bits() {
			return true
		}
	}
	return false
}

func netlinkRoute(index int, r Route) *netlink.Route {
	nr := &netlink.Route{LinkIndex: index, Dst: ipNet(r.To), Priority: r.Metric, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC}
	if r.Via.IsValid() {
		nr.Gw = r.Via.AsSlice()
	} else if r.To.Addr().Is4() {
		nr.Scope = netlink.SCOPE_LINK
	}
	if r.Src.IsValid() {
		nr.Src = r.Src.AsSlice()
	}
	if nr.Priority == 0 && r.To.Addr().Is6() {
		nr.Priority = 1024
	}
	return nr
}

func hasRoute(h *netlink.Handle, want *netlink.Route) bool {
	fam := netlink.FAMILY_V4
	if len(want.Dst.IP) == 16 {
		fam = netlink.FAMILY_V6
	}
	list, err := h.RouteListFiltered(fam, &netlink.Route{LinkIndex: want.LinkIndex, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return false
	}
	for _, r := range list {
		if r.Dst != nil && r.Dst.String() == want.Dst.String() && r.Gw.Equal(want.Gw) && r.Priority == want.Priority &&
			(want.Src == nil || r.Src.Equal(want.Src)) {
			return true
		}
	}
	return false
}

// String is the route as `ip route add` takes it, without the device.
func (r Route) String() string {
	s := r.To.String()
	if r.To.Bits() == 0 {
		s = "default"
		if r.To.Addr().Is6() {
			s = "::/0"
		}
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Src.IsValid() {
		s += " src " + r.Src.String()
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	return s
}

// ParseRoute reads "default via ADDR", "PREFIX via ADDR" or "PREFIX", each with
// an optional "src ADDR" and "metric N". A bare "default" is IPv4's.
func ParseRoute(text string) (Route, error) {
	var r Route
	fail := func(format string, args ...any) (Route, error) {
		return Route{}, fmt.Errorf("route %q: "+format, append([]any{text}, args...)...)
	}
	w := strings.Fields(text)
	if len(w) == 0 {
		return fail("empty")
	}
	for i := 1; i < len(w); i += 2 {
		if i+1 == len(w) {
			return fail("nothing follows %q", w[i])
		}
		var err error
		switch w[i] {
		case "via":
			r.Via, err = netip.ParseAddr(w[i+1])
		case "src":
			r.Src, err = netip.ParseAddr(w[i+1])
		case "metric":
			_, err = fmt.Sscanf(w[i+1], "%d", &r.Metric)
			if err == nil && (r.Metric < 0 || r.Metric > 1<<31-1) {
				err = errors.New("out of range")
			}
		default:
			return fail("unknown word %q", w[i])
		}
		if err != nil {
			return fail("%s %s: %w", w[i], w[i+1], err)
		}
	}
	if w[0] == "default" {
		any4, any6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
		if r.To = any4; r.Via.Is6() || r.Src.Is6() {
			r.To = any6
		}
	} else if p, err := netip.ParsePrefix(w[0]); err == nil {
		if r.To = p.Masked(); r.To != p {
			return fail("%s has host bits set", p)
		}
	} else if a, err := netip.ParseAddr(w[0]); err == nil {
		r.To = netip.PrefixFrom(a, a.BitLen())
	} else {
		return fail("%q is neither a prefix nor \"default\"", w[0])
	}
	for _, a := range []netip.Addr{r.Via, r.Src} {
		if a.IsValid() && a.Is4() != r.To.Addr().Is4() {
			return fail("%s is not of the family of %s", a, r.To)
		}
	}
	return r, nil
}
