package conformance

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
	"sluice/tables/ext"
)

// textCase is one rule as it is typed, after "-A CHAIN".
type textCase struct {
	fam   uint8
	table string
	args  []string
}

func (c *textCase) prog() string {
	if c.fam == packet.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// extension is what a match and a target have in common.
type extension struct {
	name    string
	flag    string // -m or -j
	options []tables.Option
	protos  []uint8
	tables  tables.TableMask
}

func extensions(fam uint8) (out []extension) {
	for _, m := range ext.Registry.Matches(fam) {
		out = append(out, extension{m.Name, "-m", m.Options, m.Protos, m.Tables})
	}
	for _, t := range ext.Registry.Targets(fam) {
		out = append(out, extension{t.Name, "-j", t.Options, t.Protos, t.Tables})
	}
	return out
}

// base is what comes before the extension's options.
func (x *extension) base(fam uint8) []string {
	var out []string
	if len(x.protos) > 0 {
		out = append(out, "-p", tables.ProtocolName(x.protos[0]))
	} else if x.name == "multiport" || x.name == "CT" || x.name == "SNAT" || x.name == "DNAT" || x.name == "MASQUERADE" || x.name == "REDIRECT" {
		out = append(out, "-p", "tcp")
	}
	return append(out, x.flag, x.name)
}

// table is one that takes the extension.
func (x *extension) table() string {
	for _, t := range []tables.TableID{tables.Filter, tables.Mangle, tables.NAT, tables.Raw, tables.Security} {
		if x.tables.Has(t) {
			return t.String()
		}
	}
	return "filter"
}

// numbers are the edges of what programs read as numbers.
var numbers = []string{"0", "1", "2", "7", "31", "32", "33", "63", "64", "127", "128", "129", "255", "256", "1000", "65534", "65535", "65536", "2147483647", "2147483648",
	"4294967294", "4294967295", "4294967296", "9223372036854775807", "18446744073709551615", "18446744073709551616", "-1", "+1", "0x10", "0X1F", "010", "08", "0x", " 5", "5 ", "1.5", "1e3"}

// anything is what no option, or a few, know what to do with.
var anything = []string{"", "x", "-", "--", "!", ",", ":", "/", "a b", "it's", `q"uote`, "1,2", "1,", ",1", "1:2", "2:1", ":5", "5:", "1:2:3", "1-2", "1/2", "0x1/0xf", "1/", "/1", "10.0.0.1", "10.0.0.0/8", "10.0.0.1-10.0.0.9", "10.0.0.1:80",
	"::1", "fd00::/8", "fd00::1-fd00::9", "[fd00::1]:80", "tcp", "ssh", "localhost", "00:11:22:33:44:55", "NEW", "all", "ALL", "none", "any", "%s", strings.Repeat("n", 15), strings.Repeat("n", 16), strings.Repeat("n", 32), strings.Repeat("n", 300)}

// valuesOf is what an option is tried with: values of its type, those that the
// extensions' tests use, what comes of these by small changes, and anything.
func valuesOf(o *tables.Option, known []string) (out []string) {
	switch t := o.Type.(type) {
	case tables.Uint:
		out = append(out, fmt.Sprint(t.Min), fmt.Sprint(t.Max), fmt.Sprint(t.Max-1), fmt.Sprint(t.Max/2), fmt.Sprintf("%#x", t.Max))
		if t.Max < 1<<64-1 {
			out = append(out, fmt.Sprint(t.Max+1))
		}
		out = append(out, numbers...)
	case tables.UintRange:
		m := fmt.Sprint(t.Max)
		out = append(out, "0:"+m, m+":0", m, m+":", ":"+m, m+"0", "1:"+m+"0", "5:5", "5:4", "0x5:0x6", "5 :6", "5: 6", "5:6x", "5x:6")
		out = append(out, numbers...)
	case tables.StateList:
		out = append(out, t.Words...)
		out = append(out, strings.Join(t.Words, ","), strings.ToLower(t.Words[0]), t.Words[0][:2], t.Words[0]+","+t.Words[0], t.Words[0]+",")
	case tables.OneOf:
		for _, w := range t.Words {
			out = append(out, w, strings.ToUpper(w), w+"x", w[:1])
		}
	case tables.String:
		for _, n := range []int{t.Min, t.Max, t.Trim} {
			if n > 1 {
				out = append(out, strings.Repeat("s", n-1), strings.Repeat("s", n), strings.Repeat("s", n+1))
			}
		}
	default:
		out = append(out, numbers...)
	}
	for _, v := range known {
		out = append(out, v)
		out = append(out, mutations(v)...)
	}
	return append(out, anything...)
}

var number = regexp.MustCompile(`\d+`)

// mutations are what is nearly v.
func mutations(v string) (out []string) {
	for _, at := range number.FindAllStringIndex(v, 3) {
		for _, n := range []string{"0", "255", "256", "65536", "4294967296", ""} {
			out = append(out, v[:at[0]]+n+v[at[1]:])
		}
	}
	for _, sep := range []string{",", ":", "-", "/"} {
		if a, b, ok := strings.Cut(v, sep); ok {
			out = append(out, b+sep+a, a+sep, sep+b, a+sep+sep+b, v+sep+a, a+sep+" "+b)
		}
	}
	if len(v) > 1 {
		out = append(out, v[:len(v)-1])
	}
	return append(out, v+"x", strings.ToUpper(v), strings.ToLower(v), v+","+v)
}

// known is the values that the extensions' own tests give to options, by
// extension and option, and whole lines that are accepted.
type known struct {
	values map[string][]string
	lines  map[string][][]string
}

func harvest(t testing.TB) *known {
	k := &known{map[string][]string{}, map[string][][]string{}}
	names, err := filepath.Glob("../../tables/ext/testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no lines of extensions: ", err)
	}
	for _, name := range names {
		_, who, ok := strings.Cut(strings.TrimSuffix(filepath.Base(name), ".txtar"), "_")
		if !ok {
			continue
		}
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			for _, l := range strings.Split(string(f.Data), "\n") {
				l, _, _ = strings.Cut(strings.TrimPrefix(l, "~"), "| ")
				w := packettest.Words(l)
				if strings.HasPrefix(f.Name, "accept") && len(w) > 0 {
					k.lines[who] = append(k.lines[who], w)
				}
				for i := 0; i+1 < len(w); i++ {
					if o, ok := strings.CutPrefix(w[i], "--"); ok && !strings.HasPrefix(w[i+1], "--") {
						if key := who + " " + o; !slices.Contains(k.values[key], w[i+1]) {
							k.values[key] = append(k.values[key], w[i+1])
						}
					}
				}
			}
		}
	}
	return k
}

// good is a value that the option takes.
func (k *known) good(who string, o *tables.Option) string {
	if seen := k.values[who+" "+o.Name]; len(seen) > 0 {
		return seen[0]
	}
	return "1"
}

// required is the option's text for the options that an extension insists on, but for some.
func (x *extension) required(k *known, but ...string) (out []string) {
	for _, o := range x.options {
		if o.Required && !slices.Contains(but, o.Name) {
			out = append(out, "--"+o.Name)
			if v := k.values[strings.ToLower(x.name)+" "+o.Name]; len(v) > 0 {
				out = append(out, v[0])
			}
		}
	}
	return out
}

// option is one option with a value, as arguments.
func option(o *tables.Option, name, value string, r *rand.Rand, k []string) []string {
	switch o.Type.Args() {
	case 0:
		return []string{"--" + name}
	case 2:
		second := value
		if len(k) > 0 {
			second = k[r.IntN(len(k))]
		}
		return []string{"--" + name, value, second}
	}
	return []string{"--" + name, value}
}

// systematic is every option of every extension with every value that comes to
// mind, and every two options together, in an order that does not depend on what other extensions there are.
func systematic(k *known) (out []textCase) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, fam := range []uint8{packet.IPv4, packet.IPv6} {
		for _, x := range extensions(fam) {
			x := &x
			add := func(args ...string) {
				out = append(out, textCase{fam, x.table(), append(x.base(fam), args...)})
			}
			who := strings.ToLower(x.name)
			add()
			out = append(out, textCase{fam, x.table(), []string{x.flag, x.name}})
			for _, t := range []string{"filter", "mangle", "nat", "raw", "security"} {
				out = append(out, textCase{fam, t, append(x.base(fam), x.required(k)...)})
			}
			for _, l := range k.lines[who] {
				out = append(out, textCase{fam, x.table(), l})
				for i := range l {
					out = append(out, textCase{fam, x.table(), slices.Delete(slices.Clone(l), i, i+1)})
				}
			}
			for i := range x.options {
				o := &x.options[i]
				seen := k.values[who+" "+o.Name]
				values := []string{""}
				if o.Type.Args() > 0 {
					values = valuesOf(o, seen)
				}
				need := x.required(k, o.Name)
				for _, v := range values {
					args := option(o, o.Name, v, r, seen)
					add(append(slices.Clone(need), args...)...)
					if o.Negatable || r.IntN(6) == 0 {
						add(append(append(slices.Clone(need), "!"), args...)...)
					}
				}
				good := k.good(who, o)
				args := option(o, o.Name, good, r, seen)
				add(append(append(slices.Clone(need), args...), args...)...)
				add(args...)
				add(append(slices.Clone(need), "--"+o.Name)...)
				if len(o.Name) > 3 {
					add(append(slices.Clone(need), option(o, o.Name[:len(o.Name)-1], good, r, seen)...)...)
				}
				for _, name := range o.Aliases {
					add(append(slices.Clone(need), option(o, name, good, r, seen)...)...)
				}
				for j := range x.options {
					if i != j {
						second := &x.options[j]
						two := append(slices.Clone(args), option(second, second.Name, k.good(who, second), r, k.values[who+" "+second.Name])...)
						add(two...)
						add(append(x.required(k, o.Name, second.Name), two...)...)
					}
				}
			}
		}
	}
	for _, fam := range []uint8{packet.IPv4, packet.IPv6} {
		for _, args := range plainRules(fam) {
			out = append(out, textCase{fam, "filter", args})
		}
	}
	keys := make(map[uint64]textCase, len(out))
	for _, c := range out {
		h := fnv.New64a()
		fmt.Fprint(h, c.fam, c.table, c.args)
		keys[h.Sum64()] = c
	}
	out = out[:0]
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		out = append(out, keys[key])
	}
	return out
}

// plainRules is what a rule says without an extension.
func plainRules(fam uint8) (out [][]string) {
	add := func(args ...string) { out = append(out, args, append(slices.Clone(args), "-j", "ACCEPT")) }
	addrs := append(slices.Clone(anything), "0.0.0.0", "255.255.255.255/0", "1.2.3.4/255.255.0.255", "1.2.3", "1.2.3.4/33", "1.2.3.4,5.6.7.8", "1.2.3.4/8,5.6.7.8/16", "::", "::/0", "fe80::1/129", "fe80::1/ffff::", "::ffff:1.2.3.4", "1::2::3", "fe80::%eth0", "::1,fe80::/10")
	for _, v := range addrs {
		for _, o := range []string{"-s", "-d", "--source", "--dst"} {
			add(o, v)
			add("!", o, v)
		}
	}
	for _, v := range append(append(slices.Clone(anything), numbers...), "udp", "icmp", "icmpv6", "ipv6-icmp", "UDP", "esp", "ah", "sctp", "mh", "ipv6-opts", "hopopt", "ip", "gre", "udplite", "dccp", "nosuch") {
		add("-p", v)
		add("!", "-p", v)
		add("--proto", v)
	}
	for _, v := range append(slices.Clone(anything), "+", "eth+", "et+h", "e/th", "eth0:1", "lo", "aver+") {
		for _, o := range []string{"-i", "-o"} {
			add(o, v)
			add("!", o, v)
		}
	}
	for _, v := range append(slices.Clone(anything), "ACCEPT", "DROP", "RETURN", "QUEUE", "accept", "INPUT", "nosuch", "other") {
		out = append(out, []string{"-j", v}, []string{"-g", v}, []string{"--jump", v}, []string{"!", "-j", v})
	}
	add("-f")
	add("!", "-f")
	add("-4")
	add("-6")
	for _, c := range [][]string{{"-c", "1", "2"}, {"-c", "1,2"}, {"-c", "1"}, {"-c", "x", "y"}, {"-c", "18446744073709551615", "0"}, {"-c", "-1", "2"}, {"--set-counters", "7", "8"}} {
		add(c...)
	}
	if fam == packet.IPv6 {
		add("-p", "icmpv6", "--icmpv6-type", "1")
	}
	return out
}

// randomCase is several options of one or two extensions together.
func randomCase(k *known, n uint64) textCase {
	r := rand.New(rand.NewPCG(n, 77))
	fam := []uint8{packet.IPv4, packet.IPv6}[r.IntN(2)]
	xs := extensions(fam)
	c := textCase{fam: fam, table: "filter"}
	for i := range 1 + r.IntN(2) {
		x := xs[r.IntN(len(xs))]
		if i == 0 || x.flag == "-j" {
			c.table = x.table()
		}
		who := strings.ToLower(x.name)
		if lines := k.lines[who]; len(lines) > 0 && r.IntN(2) == 0 {
			c.args = append(c.args, lines[r.IntN(len(lines))]...)
		} else {
			c.args = append(c.args, x.base(fam)...)
		}
		for range r.IntN(4) {
			if len(x.options) == 0 {
				break
			}
			o := &x.options[r.IntN(len(x.options))]
			seen := k.values[who+" "+o.Name]
			values := seen
			if len(seen) == 0 || r.IntN(4) == 0 {
				values = valuesOf(o, seen)
			}
			if r.IntN(5) == 0 {
				c.args = append(c.args, "!")
			}
			c.args = append(c.args, option(o, o.Name, values[r.IntN(len(values))], r, seen)...)
		}
	}
	return c
}
