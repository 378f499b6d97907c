package ipset

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ipset"
)

// field is one item of a header or an element: a name and a value, or a flag.
type field struct {
	name, val string
	flag      bool
}

// header is what a set was created with, in the order of ipset.
func header(set *ipset.Set) (out []field) {
	t, o := set.Type(), set.Options()
	put := func(name, format string, a ...any) {
		out = append(out, field{name: name, val: fmt.Sprintf(format, a...)})
	}
	mask := func() {
		switch {
		case o.Netmask != 0:
			put("netmask", "%d", o.Netmask)
		case o.HasBitmask:
			put("bitmask", "%s", tables.FormatAddr(o.Family, o.Bitmask))
		}
	}
	switch t.Method() {
	case "hash":
		if !t.NoFamily() {
			put("family", "%s", familyName(o.Family))
		}
		if t.Name == "hash:ip,mark" && o.MarkMask != 1<<32-1 {
			put("markmask", "0x%08x", o.MarkMask)
		}
		put("hashsize", "%d", o.HashSize)
		put("maxelem", "%d", o.MaxElem)
		if t.Name == "hash:ip" {
			mask()
		}
	case "bitmap":
		if t.Name == "bitmap:port" {
			put("range", "%d-%d", o.From, o.To)
		} else {
			put("range", "%s-%s", v4(o.From), v4(o.To))
			mask()
		}
	default:
		put("size", "%d", o.Size)
	}
	if o.HasTimeout {
		put("timeout", "%d", o.Timeout)
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{o.Counters, "counters"}, {o.Comment, "comment"}, {o.SKBInfo, "skbinfo"}} {
		if f.on {
			out = append(out, field{name: f.name, flag: true})
		}
	}
	if t.Method() == "hash" {
		put("bucketsize", "%d", o.BucketSize)
		put("initval", "0x%08x", o.InitVal)
		if t.Name != "hash:ip" {
			mask()
		}
	}
	return out
}

// fields are what an element carries.
func fields(e *ipset.Elem, x *ipset.Ext) (out []field) {
	put := func(name, format string, a ...any) {
		out = append(out, field{name: name, val: fmt.Sprintf(format, a...)})
	}
	if x.HasTimeout {
		put("timeout", "%d", x.Timeout)
	}
	if e.NoMatch {
		out = append(out, field{name: "nomatch", flag: true})
	}
	if e.Wildcard {
		out = append(out, field{name: "wildcard", flag: true})
	}
	if x.HasCounters {
		put("packets", "%d", x.Packets)
		put("bytes", "%d", x.Bytes)
	}
	if x.Comment != "" {
		put("comment", `"%s"`, x.Comment)
	}
	switch i := x.Info; {
	case i.MarkMask == 1<<32-1:
		put("skbmark", "0x%x", i.Mark)
	case i.Mark != 0 || i.MarkMask != 0:
		put("skbmark", "0x%x/0x%x", i.Mark, i.MarkMask)
	}
	if x.Info.Prio != 0 {
		put("skbprio", "%x:%x", x.Info.Prio>>16, x.Info.Prio&0xffff)
	}
	if x.Info.Queue != 0 {
		put("skbqueue", "%d", x.Info.Queue)
	}
	return out
}

func plainFields(fs []field) string {
	var b strings.Builder
	for _, f := range fs {
		b.WriteByte(' ')
		b.WriteString(f.name)
		if !f.flag {
			b.WriteByte(' ')
			b.WriteString(f.val)
		}
	}
	return b.String()
}

func xmlFields(fs []field) string {
	var b strings.Builder
	for _, f := range fs {
		if f.flag {
			fmt.Fprintf(&b, "<%s/>", f.name)
		} else {
			fmt.Fprintf(&b, "<%s>%s</%s>", f.name, f.val, f.name)
		}
	}
	return b.String()
}

func macText(m [6]byte) string {
	return fmt.Sprintf("%02X:%02X:%02X:%02X:%02X:%02X", m[0], m[1], m[2], m[3], m[4], m[5])
}

// partText is a part of an element that is no address.
func partText(kind string, e *ipset.Elem, typ string) string {
	switch kind {
	case "port":
		if typ == "bitmap:port" {
			return fmt.Sprint(e.Port)
		}
		switch e.Proto {
		case packet.ProtoICMP:
			return "icmp:" + icmpText(icmpNames, e.Port)
		case packet.ProtoICMPv6:
			return "ipv6-icmp:" + icmpText(icmp6Names, e.Port)
		}
		return fmt.Sprintf("%s:%d", protoName(e.Proto), e.Port)
	case "iface":
		if e.Physdev {
			return "physdev:" + e.Iface
		}
		return e.Iface
	case "mac":
		return macText(e.MAC)
	case "mark":
		return fmt.Sprintf("0x%08x", e.Mark)
	}
	return e.Set
}

// printer prints the elements of a set.
type printer struct {
	typ    *ipset.Type
	parts  []string
	family uint8
	names  map[[16]byte]string // nil: addresses are not looked up
}

func newPrinter(set *ipset.Set, resolve bool) *printer {
	p := &printer{typ: set.Type(), parts: set.Type().Parts(), family: set.Options().Family}
	if p.family == 0 {
		p.family = packet.IPv4
	}
	if resolve {
		p.names = map[[16]byte]string{}
	}
	return p
}

func (p *printer) addr(a [16]byte, bits uint8, net bool) string {
	s := tables.FormatAddr(p.family, a)
	if p.names != nil {
		s = p.lookup(a, s)
	}
	if net && (p.family == packet.IPv4 && bits != 32 || p.family == packet.IPv6 && bits != 128) {
		s += fmt.Sprintf("/%d", bits)
	}
	return s
}

func (p *printer) lookup(a [16]byte, plain string) string {
	if s, ok := p.names[a]; ok {
		return s
	}
	s := plain
	if names, err := net.LookupAddr(plain); err == nil && len(names) > 0 {
		s = strings.TrimSuffix(names[0], ".")
	}
	p.names[a] = s
	return s
}

func (p *printer) elem(e *ipset.Elem) string {
	var b strings.Builder
	n := 0
	for i, k := range p.parts {
		if k == "mac" && !e.HasMAC {
			continue
		}
		if i > 0 {
			b.WriteByte(',')
		}
		switch k {
		case "ip", "net":
			a, bits := e.Addr, e.Bits
			if n > 0 {
				a, bits = e.Addr2, e.Bits2
			}
			n++
			b.WriteString(p.addr(a, bits, k == "net"))
		default:
			b.WriteString(partText(k, e, p.typ.Name))
		}
	}
	return b.String()
}

type listed struct {
	e ipset.Elem
	x ipset.Ext
}

// members calls f for the elements of a set, in order if that was asked for.
func (r *runner) members(o *options, set *ipset.Set, p *printer, f func(elem string, fs []field)) {
	if !o.sorted || set.Type().Method() != "hash" {
		set.Each(func(e ipset.Elem, x ipset.Ext) bool {
			f(p.elem(&e), fields(&e, &x))
			return !r.stopped()
		})
		return
	}
	var all []listed
	set.Each(func(e ipset.Elem, x ipset.Ext) bool {
		all = append(all, listed{e, x})
		return true
	})
	by := less(set.Type())
	slices.SortStableFunc(all, func(a, b listed) int {
		if o.resolve {
			return strings.Compare(p.elem(&a.e), p.elem(&b.e))
		}
		return by(&a.e, &b.e)
	})
	for i := range all {
		if i%4096 == 0 && r.stopped() {
			return
		}
		f(p.elem(&all[i].e), fields(&all[i].e, &all[i].x))
	}
}

// into makes a file, for what is printed until end is called.
func (r *runner) into(name string) (end func(), err error) {
	f, err := io.WriteCloser(nil), error(syscall.EPERM)
	if r.files != nil {
		f, err = r.files(name)
	}
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		why := err.Error()
		return nil, fmt.Errorf("Cannot open %s for writing: %s", name, strings.ToUpper(why[:1])+why[1:])
	}
	r.out.Flush()
	out := r.out
	r.out = bufio.NewWriterSize(f, 1<<16)
	return func() {
		r.out.Flush()
		f.Close()
		r.out = out
	}, nil
}

// list is list and save.
func (r *runner) list(o *options, c cmd, one bool, name string) error {
	m := o.mode
	if !o.hasMode { // the first command says it for those of a restore that follow
		if c == cmdSave {
			m = modeSave
		}
		r.opt.mode, r.opt.hasMode = m, true
	}
	refs := r.sets.Refs()
	if one {
		ref := r.sets.Ref(name)
		if ref == nil {
			return kernel(c, ipset.ErrNoEntry)
		}
		refs = []*ipset.Ref{ref}
	}
	if m == modeXML {
		fmt.Fprint(r.out, "<ipsets>\n")
		defer fmt.Fprint(r.out, "</ipsets>\n")
	}
	for i, ref := range refs {
		set := ref.Set()
		switch {
		case o.names && m == modeXML:
			fmt.Fprintf(r.out, "<ipset name=\"%s\"/>\n", ref.Name())
		case o.names && m != modeSave:
			fmt.Fprintln(r.out, ref.Name())
		case m == modeSave:
			r.save(o, ref, set)
		case m == modeXML:
			r.xml(o, ref, set)
		default:
			if i > 0 {
				fmt.Fprintln(r.out)
			}
			r.plain(o, ref, set)
		}
	}
	return nil
}

func (r *runner) plain(o *options, ref *ipset.Ref, set *ipset.Set) {
	t := set.Type()
	fmt.Fprintf(r.out, "Name: %s\nType: %s\nRevision: %d\nHeader:%s\nSize in memory: %d\nReferences: %d\nNumber of entries: %d\n",
		ref.Name(), t.Name, t.Revision, plainFields(header(set)), set.Memory(), ref.Users(), set.Len())
	if o.terse {
		return
	}
	fmt.Fprintln(r.out, "Members:")
	r.members(o, set, newPrinter(set, o.resolve), func(elem string, fs []field) {
		r.out.WriteString(elem)
		r.out.WriteString(plainFields(fs))
		r.out.WriteByte('\n')
	})
}

func (r *runner) save(o *options, ref *ipset.Ref, set *ipset.Set) {
	name := ref.Name()
	fmt.Fprintf(r.out, "create %s %s%s\n", name, set.Type().Name, plainFields(header(set)))
	r.members(o, set, newPrinter(set, o.resolve), func(elem string, fs []field) {
		r.out.WriteString("add ")
		r.out.WriteString(name)
		r.out.WriteByte(' ')
		r.out.WriteString(elem)
		r.out.WriteString(plainFields(fs))
		r.out.WriteByte('\n')
	})
}

func (r *runner) xml(o *options, ref *ipset.Ref, set *ipset.Set) {
	t := set.Type()
	fmt.Fprintf(r.out, "<ipset name=\"%s\">\n<type>%s</type>\n<revision>%d</revision>\n<header>%s\n<memsize>%d</memsize>\n<references>%d</references>\n<numentries>%d</numentries>\n</header>\n",
		ref.Name(), t.Name, t.Revision, xmlFields(header(set)), set.Memory(), ref.Users(), set.Len())
	if !o.terse {
		fmt.Fprint(r.out, "<members>\n")
		r.members(o, set, newPrinter(set, o.resolve), func(elem string, fs []field) {
			fmt.Fprintf(r.out, "<member><elem>%s</elem>%s</member>\n", elem, xmlFields(fs))
		})
		fmt.Fprint(r.out, "</members>\n")
	}
	fmt.Fprint(r.out, "</ipset>\n")
}
