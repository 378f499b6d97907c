package conntrackcmd

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"sluice/conntrack"
	"sluice/packet"
)

//go:embed help.txt
var helpText string

const banner = "conntrack v1.4.7 (conntrack-tools)"

type table uint8

const (
	tableConntrack table = iota
	tableExpect
	tableDying
	tableUnconfirmed
)

var tableNames = []string{"conntrack", "expect", "dying", "unconfirmed"}

// prefixArg is an address with the mask to compare under.
type prefixArg struct {
	addr, mask [16]byte
}

// natArg is the argument of -n, -g and -j.
type natArg struct {
	given, hasPort bool
	addr           [16]byte
	port           uint16
}

// cmdline is one command, parsed.
type cmdline struct {
	cmd                          command
	table                        table
	given                        uint64
	file                         string
	family                       uint8
	src, dst, replySrc, replyDst prefixArg
	tupleSrc, tupleDst           [16]byte
	maskSrc, maskDst             [16]byte
	proto                        uint8
	timeout                      uint32
	status                       conntrack.Status
	statusMask                   conntrack.Status
	mark, markMask               uint32
	id                           uint32
	zone, origZone, replyZone    uint16
	nat                          [3]natArg // src, dst, any
	format                       format
	events                       [3]bool
	labels, labelAdd, labelDel   [16]byte
	delAll                       bool

	protoGiven uint64
	protoVals  [numProtoOpts]uint32
	state      uint8
}

func (c *cmdline) has(o int) bool   { return c.given>>o&1 != 0 }
func (c *cmdline) hasP(po int) bool { return c.protoGiven>>po&1 != 0 }

// runner carries a call's streams.
type runner struct {
	t        *conntrack.Table
	in       io.Reader
	out      *bufio.Writer
	err      io.Writer
	stop     <-chan struct{}
	labels   *labelMap
	labelsIn bool
	quiet    bool // running a file: no summaries
	shown    int
	opened   bool // the XML header is out
}

// Run does what `conntrack argv...` (without the program's name) does, on t.
// It returns the exit status: 0 done, 1 failed or nothing found, 2 bad usage.
// -E runs until stop is closed.
func Run(t *conntrack.Table, argv []string, stdin io.Reader, stdout, stderr io.Writer, stop <-chan struct{}) int {
	r := &runner{t: t, in: stdin, out: bufio.NewWriter(stdout), err: stderr, stop: stop}
	return r.finish(r.run(argv))
}

// finish flushes, says what went wrong and gives the exit status.
func (r *runner) finish(err error) int {
	r.out.Flush()
	var usage usageError
	var st exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &st):
		return int(st)
	case errors.As(err, &usage):
		fmt.Fprintf(r.err, "%s: %s\nTry `conntrack -h' or 'conntrack --help' for more information.\n", banner, usage.text)
		return 2
	}
	what := "Operation failed: "
	if _, ok := err.(plainError); ok {
		what = ""
	}
	fmt.Fprintf(r.err, "%s: %s%s\n", banner, what, err)
	return 1
}

// plainError is a failure that is told as it is.
type plainError string

func (e plainError) Error() string { return string(e) }

type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprint("exit status ", int(e)) }

func (r *runner) run(argv []string) error {
	c, err := r.parse(argv)
	if err != nil {
		return err
	}
	if c.cmd == cmdNone {
		c.cmd = cmdHelp
	}
	if c.cmd == cmdLoad {
		return r.load(c.file)
	}
	if c.table >= tableDying && c.cmd != cmdList {
		return usagef("Can't do that command with tables `dying' and `unconfirmed'")
	}
	rule := rules[c.cmd]
	if c.table == tableExpect {
		rule = expectRules[c.cmd]
	}
	if rule == "" {
		return usagef("Can't do --%s on expectations", c.cmd.name())
	}
	if err := check(rule, c.given); err != nil {
		return err
	}
	if err := c.checkProto(); err != nil {
		return err
	}
	if c.has(optMaskSrc) && !c.has(optSrc) && c.table != tableExpect {
		return usagef("Can't use --mask-src without --src")
	}
	if c.has(optMaskDst) && !c.has(optDst) && c.table != tableExpect {
		return usagef("Can't use --mask-dst without --dst")
	}
	const filters = 1<<optSrc | 1<<optDst | 1<<optReplySrc | 1<<optReplyDst | 1<<optProto | 1<<optStatus | 1<<optMark | 1<<optZone
	if c.has(optZero) && c.given&filters != 0 {
		return usagef("Can't use -z with filtering parameters")
	}
	if c.cmd == cmdList && c.has(optStatus) && c.statusMask == 0 {
		return errors.New("invalid parameters")
	}
	if c.format&fmtSave != 0 && c.format != fmtSave {
		return plainError("cannot combine save output with any other output type, use -o save only")
	}
	if c.has(optAnyNAT) && (c.has(optSrcNAT) || c.has(optDstNAT)) {
		return usagef("cannot specify `--src-nat' or `--dst-nat' with `--any-nat'")
	}
	if c.format&fmtLabels != 0 {
		r.loadLabels()
	}
	if c.table == tableExpect {
		return r.doExpect(c)
	}
	return r.do(c)
}

// parse reads a command line.
func (r *runner) parse(argv []string) (*cmdline, error) {
	c := &cmdline{markMask: ^uint32(0)}
	g := &getopt{args: append([]string(nil), argv...), longs: longs}
	for {
		key, val, attached, err := g.next()
		if err != nil || key == 0 {
			return c, err
		}
		if key >= keyProto {
			if err := c.protoOption(key-keyProto, val); err != nil {
				return c, err
			}
			continue
		}
		if cmd, ok := commandOf(key); ok {
			if c.cmd != cmdNone {
				return c, usagef("Invalid commands combination")
			}
			c.cmd = cmd
			if cmd == cmdLoad {
				c.file = val
				continue
			}
			if cmd == cmdHelp {
				continue
			}
			if name, ok := g.optional(attached); ok {
				i := 0
				for ; i < len(tableNames) && !strings.HasPrefix(tableNames[i], name); i++ {
				}
				if i == len(tableNames) {
					return c, usagef("unknown type `%s'", name)
				}
				c.table = table(i)
			}
			continue
		}
		if err := r.option(c, g, key, val, attached); err != nil {
			return c, err
		}
	}
}

func commandOf(key int) (command, bool) {
	if key > 255 {
		return 0, false
	}
	i := strings.IndexByte("LIAUDGFECSVhR", byte(key))
	return command(i + 1), i >= 0
}

// option takes one option that is no command.
func (r *runner) option(c *cmdline, g *getopt, key int, val string, attached bool) (err error) {
	set := func(o int) { c.given |= 1 << o }
	switch key {
	case 's':
		set(optSrc)
		return c.address(&c.src, val, &c.maskSrc, optMaskSrc)
	case 'd':
		set(optDst)
		return c.address(&c.dst, val, &c.maskDst, optMaskDst)
	case 'r':
		set(optReplySrc)
		return c.whole(&c.replySrc, "reply-src", val)
	case 'q':
		set(optReplyDst)
		return c.whole(&c.replyDst, "reply-dst", val)
	case keyTupleSrc, keyTupleDst:
		i := key - keyTupleSrc
		set(optTupleSrc + i)
		var p prefixArg
		err = c.address(&p, val, []*[16]byte{&c.maskSrc, &c.maskDst}[i], optMaskSrc+i)
		*[]*[16]byte{&c.tupleSrc, &c.tupleDst}[i] = p.addr
	case keyMaskSrc, keyMaskDst:
		i := key - keyMaskSrc
		set(optMaskSrc + i)
		var p prefixArg
		err = c.whole(&p, optNames[optMaskSrc+i], val)
		*[]*[16]byte{&c.maskSrc, &c.maskDst}[i] = p.addr
	case 'p':
		n, ok := findProto(val)
		if !ok {
			return usagef("`%s' unsupported protocol", val)
		}
		set(optProto)
		c.proto = n
		g.longs = append(append([]long{}, longs...), protoLongs(n)...)
	case 't':
		set(optTimeout)
		c.timeout = uint32(strtoul(val))
	case 'u':
		set(optStatus)
		return list(val, func(w string) bool {
			if w == "UNREPLIED" { // in capitals only, unlike the others
				c.statusMask |= conntrack.SeenReply
				return true
			}
			switch w = strings.ToUpper(w); w {
			case "SRC_NAT", "DST_NAT":
				fmt.Fprintf(r.err, "WARNING: ignoring %s, use --%s-nat instead\n", w, strings.ToLower(w[:3]))
				return true
			}
			for _, s := range statusNames {
				if s.name == w {
					c.status |= s.bit
					c.statusMask |= s.bit
					return true
				}
			}
			return false
		})
	case 'z':
		set(optZero)
	case 'e':
		set(optEventMask)
		return list(val, func(w string) bool {
			switch strings.ToUpper(w) {
			case "ALL":
				c.events = [3]bool{true, true, true}
			case "NEW":
				c.events[conntrack.EvNew] = true
			case "UPDATES":
				c.events[conntrack.EvUpdate] = true
			case "DESTROY":
				c.events[conntrack.EvDestroy] = true
			default:
				return false
			}
			return true
		})
	case 'm':
		set(optMark)
		n, rest := number(val)
		c.mark, c.markMask = uint32(n), ^uint32(0)
		if strings.HasPrefix(rest, "/") {
			c.markMask = uint32(strtoul(rest[1:]))
		}
	case 'c':
		set(optSecMark)
	case 'b':
		set(optBuffer)
	case 'i':
		set(optID)
		c.id = uint32(strtoul(val))
	case 'f':
		set(optFamily)
		switch val {
		case "ipv4":
			return c.setFamily(packet.IPv4)
		case "ipv6":
			return c.setFamily(packet.IPv6)
		}
		return usagef("`%s' unsupported protocol", val)
	case 'n', 'g', 'j':
		i := strings.IndexByte("ngj", byte(key))
		set([]int{optSrcNAT, optDstNAT, optAnyNAT}[i])
		if v, ok := g.optional(attached); ok {
			return c.natAddress(&c.nat[i], []string{"src-nat", "dst-nat", "any-nat"}[i], v)
		}
	case 'o':
		set(optOutput)
		return list(val, func(w string) bool {
			for _, f := range formats {
				if strings.EqualFold(f.name, w) {
					c.format |= f.bit
					return true
				}
			}
			return false
		})
	case 'w':
		set(optZone)
		c.zone = uint16(strtoul(val))
	case keyOrigZone:
		set(optOrigZone)
		c.origZone = uint16(strtoul(val))
	case keyReplyZone:
		set(optReplyZone)
		c.replyZone = uint16(strtoul(val))
	case 'l':
		set(optLabel)
		return r.labelList(val, &c.labels)
	case keyLabelAdd:
		set(optLabelAdd)
		return r.labelList(val, &c.labelAdd)
	case keyLabelDel:
		set(optLabelDel)
		if v, ok := g.optional(attached); ok {
			return r.labelList(v, &c.labelDel)
		}
		r.loadLabels()
		c.delAll = true
	}
	return err
}

// list hands the words of a comma-separated list to f; false is a bad word. The
// error has all that is left of the list.
func list(val string, f func(string) bool) error {
	for more := true; more; {
		rest := val
		var w string
		if w, val, more = strings.Cut(rest, ","); w == "" || !f(w) {
			return usagef("Bad parameter `%s'", rest)
		}
	}
	return nil
}

func (r *runner) loadLabels() {
	if r.labelsIn {
		return
	}
	r.labelsIn = true
	if r.labels = loadLabels(labelFile); r.labels == nil {
		fmt.Fprintln(r.err, "nfct_labelmap_new: No such file or directory")
	}
}

func (r *runner) labelList(val string, to *[16]byte) error {
	r.loadLabels()
	for _, w := range strings.Split(val, ",") {
		var n uint8
		ok := false
		if r.labels != nil {
			n, ok = r.labels.byName[w]
		}
		if !ok {
			return usagef("unknown label '%s'", w)
		}
		to[n/8] |= 1 << (n % 8)
	}
	return nil
}

func (c *cmdline) setFamily(f uint8) error {
	if c.family != 0 && c.family != f {
		return usagef("mismatched address family")
	}
	c.family = f
	return nil
}

func (c *cmdline) plain(s string) ([16]byte, error) {
	a, err := netip.ParseAddr(s)
	if v4, ok := inetAton(s); ok {
		a, err = netip.AddrFrom4(v4), nil
	}
	if err != nil || a.Zone() != "" {
		return [16]byte{}, usagef("Invalid IP address `%s'", s)
	}
	f := packet.IPv6
	if a.Is4() {
		f = packet.IPv4
	}
	return conntrack.AddrBytes(a), c.setFamily(f)
}

// address reads ADDR or ADDR/BITS; the mask also goes where --mask-… would put it.
func (c *cmdline) address(p *prefixArg, s string, mask *[16]byte, o int) (err error) {
	host, bits, cidr := strings.Cut(s, "/")
	if p.addr, err = c.plain(host); err != nil {
		return err
	}
	size := 32
	if c.family == packet.IPv6 {
		size = 128
	}
	n := size
	if cidr {
		v, rest := number(bits)
		if rest != "" || v > uint64(size) {
			return usagef("Invalid netmask")
		}
		n = int(v)
	}
	for i := range n {
		p.mask[i/8] |= 0x80 >> (i % 8)
	}
	if n < size {
		*mask = p.mask
		c.given |= 1 << o
	}
	return nil
}

// whole reads an address that can have no mask.
func (c *cmdline) whole(p *prefixArg, name, s string) (err error) {
	if strings.Contains(s, "/") {
		return usagef("CIDR notation unavailable for `--%s'", name)
	}
	for i := range p.mask {
		p.mask[i] = 0xff
	}
	p.addr, err = c.plain(s)
	return err
}

// inetAton reads an IPv4 address as inet_aton(3) does: up to four numbers of any
// base, of which the last fills what is left.
func inetAton(s string) (a [4]byte, ok bool) {
	parts := strings.Split(s, ".")
	for i, p := range parts {
		n, rest := number(p)
		limit := uint64(255)
		if i == len(parts)-1 {
			limit = 1<<(8*(4-min(i, 4))) - 1
		}
		if i > 3 || p == "" || p[0] < '0' || p[0] > '9' || rest != "" || n > limit {
			return a, false
		}
		if i < len(parts)-1 {
			a[i] = byte(n)
			continue
		}
		for j := 3; j >= i; j-- {
			a[j] = byte(n)
			n >>= 8
		}
	}
	return a, true
}

// natAddress reads ADDR[:PORT] or [ADDR6]:PORT.
func (c *cmdline) natAddress(n *natArg, name, s string) (err error) {
	if strings.Contains(s, "/") {
		return usagef("CIDR notation unavailable for `--%s'", name)
	}
	host, port, hasPort := s, "", false
	if in, ok := strings.CutPrefix(s, "["); ok && strings.Contains(in, "]:") {
		host, port, hasPort = strings.Cut(in, "]:")
	} else if strings.Count(s, ":") == 1 {
		host, port, hasPort = strings.Cut(s, ":")
	}
	if hasPort {
		v, rest := number(port)
		switch {
		case port == "":
			return usagef("No port specified after `:'")
		case rest != "" || v > 65535:
			return usagef("Invalid port `%s'", port)
		}
		n.hasPort, n.port = true, uint16(v)
	}
	n.given = true
	n.addr, err = c.plain(host)
	return err
}

// load runs the commands of a file, one a line.
func (r *runner) load(path string) error {
	in := r.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return usagef("Failed to open file %s for reading", path)
		}
		defer f.Close()
		in = f
	}
	r.quiet = true
	for sc := bufio.NewScanner(in); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) == 0 || strings.HasPrefix(w[0], "#") {
			continue
		}
		if w[0] == "conntrack" {
			w = w[1:]
		}
		var st exitStatus
		if err := r.run(w); err != nil && !errors.As(err, &st) {
			return err
		}
	}
	return nil
}

func (r *runner) summary(what string) {
	if !r.quiet {
		r.out.Flush()
		fmt.Fprintf(r.err, "%s: %d %s\n", banner, r.shown, what)
	}
	r.shown = 0
}

// element prints one line, opening the XML document before the first.
func (r *runner) element(c *cmdline, root, text string) {
	if c.format&fmtXML != 0 && !r.opened {
		fmt.Fprintf(r.out, "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<%s>\n", root)
		r.opened = true
	}
	fmt.Fprintln(r.out, text)
	r.shown++
}

func (r *runner) closeXML(root string) {
	if r.opened {
		fmt.Fprintf(r.out, "</%s>\n", root)
		r.opened = false
	}
}

func (r *runner) text(c *cmdline, s *conntrack.Snapshot, w *what) string {
	w.labels = r.labels
	if w.now.IsZero() {
		w.now = time.Now()
	}
	switch {
	case c.format&fmtXML != 0:
		return xml(s, c.format, w)
	case c.format&fmtSave != 0:
		return save(s, w)
	}
	return line(s, c.format, w)
}
