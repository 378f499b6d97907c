package ext

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"

	"sluice/packet"
	"sluice/tables"
)

// Modes of hashlimit, with the kernel's bits: what packets are told apart by.
const (
	hashDstIP uint32 = 1 << iota
	hashDstPort
	hashSrcIP
	hashSrcPort
)

var hashModes = []struct {
	name string
	bit  uint32
}{{"srcip", hashSrcIP}, {"srcport", hashSrcPort}, {"dstip", hashDstIP}, {"dstport", hashDstPort}}

const (
	hashScale      = 1e6 // unit of a packet rate: microseconds
	hashByteShift  = 4   // unit of a byte rate: chunks of 16 bytes
	hashBurst      = 5
	hashBurstMax   = 1000000
	hashByteExpire = 15 // seconds
	hashFullExpire = 60 // with a burst
	hashMaxSize    = 1 << 20
)

// hashRate is a rate: in Value.Lo the time between packets in microseconds, or
// the cost of 16 bytes as a part of 2^32; in Hi the seconds of its unit. Str is "b" for bytes.
type hashRate struct{}

func (hashRate) Args() int { return 1 }

func (hashRate) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	s := text[0]
	bad := tables.Usagef("hashlimit: Bad value for \"--%s\" option: \"%s\"", o.Name, s)
	n, neg := longPrefix(s)
	if strings.Contains(s, "b/s") {
		factor := uint64(1)
		if strings.Contains(s, "kb/s") {
			factor = 1 << 10
		} else if strings.Contains(s, "mb/s") {
			factor = 1 << 20
		}
		if n == 0 {
			return bad
		}
		if neg {
			n = -n
		}
		v.Lo, v.Hi, v.Str = bytesToCost(n*factor), hashByteExpire, "b"
		return nil
	}
	_, unit, has := strings.Cut(s, "/")
	mult := uint64(1)
	if has {
		mult = 0
		for _, u := range limitUnits {
			if unit != "" && len(unit) <= len(u.name) && strings.EqualFold(unit, u.name[:len(unit)]) {
				mult = u.seconds
				break
			}
		}
	}
	if n == 0 || mult == 0 {
		return bad
	}
	v.Hi = mult
	if v.Lo = hashScale * mult / n; neg || v.Lo == 0 {
		return tables.Usagef("Rate too fast \"%s\"", s)
	}
	return nil
}

func (hashRate) Format(v *tables.Value) string { return fmt.Sprint(v.Lo) }

// longPrefix reads the decimal number at the beginning of s, as atol does.
func longPrefix(s string) (n uint64, neg bool) {
	s = strings.TrimLeft(s, blanks)
	if s != "" && (s[0] == '-' || s[0] == '+') {
		neg = s[0] == '-'
		s = s[1:]
	}
	for i := 0; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		if n > (math.MaxInt64-9)/10 {
			return math.MaxInt64, neg
		}
		n = n*10 + uint64(s[i]-'0')
	}
	return n, neg
}

func bytesToCost(n uint64) uint64 { return math.MaxUint32 / (uint64(uint32(n>>hashByteShift)) + 1) }

func costToBytes(cost uint64) uint64 {
	if cost == 0 {
		cost = 1
	}
	return (math.MaxUint32/cost - 1) << hashByteShift
}

// hashBurstType is a number of packets, or of bytes with k or m; Hi says whether anything followed the number.
type hashBurstType struct{}

func (hashBurstType) Args() int { return 1 }

func errHashBurst() error {
	return tables.Usagef("bad value for option \"--hashlimit-burst\", or out of range (1-%d).", hashBurstMax)
}

func (hashBurstType) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	n, rest, ok := tables.Strtoul(text[0], 1, math.MaxUint32)
	if !ok || rest == "" && n > hashBurstMax {
		return errHashBurst()
	}
	v.Lo = n
	switch {
	case rest == "":
	case rest[0] == 'k':
		v.Lo <<= 10
	case rest[0] == 'm':
		v.Lo <<= 20
	}
	return nil
}

func (hashBurstType) Format(v *tables.Value) string { return fmt.Sprint(v.Lo) }

// hashMode is a list of modes, as bits in Value.Lo.
type hashMode struct{}

func (hashMode) Args() int { return 1 }

func (hashMode) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
next:
	for _, w := range strings.Split(text[0], ",") {
		if w == "" {
			continue
		}
		for _, m := range hashModes {
			if m.name == w {
				v.Lo |= uint64(m.bit)
				continue next
			}
		}
		return tables.Usagef("hashlimit: Bad value for \"--%s\" option: \"%s\"", o.Name, text[0])
	}
	return nil
}

func (hashMode) Format(v *tables.Value) string { return hashModeText(uint32(v.Lo), ",") }

func hashModeText(mode uint32, sep string) string {
	var names []string
	for _, m := range hashModes {
		if mode&m.bit != 0 {
			names = append(names, m.name)
		}
	}
	return strings.Join(names, sep)
}

// hashInterval is a number of seconds; what follows the number is not looked at.
type hashInterval struct{}

func (hashInterval) Args() int { return 1 }

func (hashInterval) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	n, neg := longPrefix(text[0])
	if n == 0 || neg || n > math.MaxInt32 {
		return tables.Usagef("hashlimit: Bad value for \"--%s\" option: \"%s\"", o.Name, text[0])
	}
	v.Lo = n
	return nil
}

func (hashInterval) Format(v *tables.Value) string { return fmt.Sprint(v.Lo) }

// plen is a prefix length in Value.Lo, or a mask; plenHoles for one with holes.
type plen struct{}

const plenHoles = 255

func (plen) Args() int { return 1 }

func (plen) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	width := familyBits(o.Family)
	if n, rest, ok := tables.Strtoul(text[0], 0, width); ok && rest == "" {
		v.Lo = n
		return nil
	}
	var m tables.Value
	numeric := *o
	numeric.Resolve = nil
	if strings.HasPrefix(text[0], "-") || strings.Contains(text[0], "/") || tables.HostMask.Parse(&numeric, text, &m) != nil {
		return tables.Usagef("%s: bad value for option \"--%s\", neither a valid network mask nor valid CIDR (0-%d).\n", o.Ext, o.Name, width)
	}
	n, contiguous := tables.MaskBits(m.A)
	if v.Lo = uint64(n); !contiguous {
		v.Lo = plenHoles
	}
	return nil
}

func (plen) Format(v *tables.Value) string { return fmt.Sprint(v.Lo) }

func familyBits(fam uint8) uint64 {
	if fam == packet.IPv4 {
		return 32
	}
	return 128
}

// hashConfig is what the options come to.
type hashConfig struct {
	above, bytes, rateMatch bool
	mode                    uint32
	avg, burst              uint64
	size, max               uint32 // buckets, entries; 0: the usual number
	gc, expire              uint32 // ms
	interval                uint32 // s
	src, dst                uint8  // prefix lengths
}

func hashConfigOf(a *tables.Args) (*hashConfig, error) {
	rate := a.Get("hashlimit-upto")
	k := &hashConfig{above: rate.Not}
	if !rate.Set {
		if rate = a.Get("hashlimit-above"); !rate.Set {
			return nil, tables.Usagef("You have to specify --hashlimit")
		}
		k.above = !rate.Not
	}
	k.avg, k.bytes = rate.Lo, rate.Str != ""
	k.mode = uint32(a.Num("hashlimit-mode"))
	k.size, k.max = uint32(a.Num("hashlimit-htable-size")), uint32(a.Num("hashlimit-htable-max"))
	k.interval, k.rateMatch = uint32(a.Num("hashlimit-rate-interval")), a.Has("hashlimit-rate-match")
	or := func(name string, def uint64) uint64 {
		if a.Has(name) {
			return a.Num(name)
		}
		return def
	}
	k.gc = uint32(or("hashlimit-htable-gcinterval", 1000))
	expire := rate.Hi
	k.src, k.dst = uint8(or("hashlimit-srcmask", familyBits(a.Family))), uint8(or("hashlimit-dstmask", familyBits(a.Family)))
	switch k.burst = or("hashlimit-burst", hashBurst); {
	case !k.bytes:
		if k.burst > hashBurstMax {
			return nil, errHashBurst()
		}
	case !a.Has("hashlimit-burst"):
		k.burst = 0
	default:
		// Whole seconds' worths of the rate. The kernel's word for it has 32 bits.
		second := costToBytes(k.avg)
		if k.burst < second || second == 0 {
			return nil, tables.Usagef("burst cannot be smaller than %db", max(second, 1<<hashByteShift))
		}
		more := k.burst%second != 0
		if k.burst = k.burst & math.MaxUint32 / second; more {
			k.burst++
		}
		expire = hashFullExpire
	}
	k.expire = uint32(or("hashlimit-htable-expire", expire*1000))
	if k.rateMatch {
		if !k.bytes {
			k.avg /= rate.Hi
		}
		if k.interval == 0 {
			k.interval = 1
			if !k.bytes {
				k.interval = uint32(rate.Hi)
			}
		}
	}
	return k, nil
}

// rateText prints a rate and gives the expiry in ms that goes without saying.
func (k *hashConfig) rateText(period uint64, burst string) (string, uint32) {
	if !k.bytes {
		names := []string{"sec", "min", "hour", "day"}
		best := len(limitUnits) - 1
		if period == 0 {
			return fmt.Sprintf(" inf%s%d", burst, k.burst), 0
		}
		for i := best - 1; i >= 0; i-- {
			mult := limitUnits[i].seconds * hashScale
			if period > mult || mult/period < mult%period {
				break
			}
			best = i
		}
		n := limitUnits[best].seconds
		return fmt.Sprintf(" %d/%s%s%d", n*hashScale/period, names[best], burst, k.burst), uint32(n * 1000)
	}
	n := max(costToBytes(k.avg), 1) // not 0 as iptables prints, which would not read back
	units := []struct {
		name string
		size uint64
	}{{"mb", 1 << 20}, {"kb", 1 << 10}, {"b", 1}}
	i := 0 // the largest unit that reads back as the same rate, in the 32 bits iptables has for it
	for i < 2 && (n < units[i].size || bytesToCost(uint64(uint32(n-n%units[i].size))) != k.avg) {
		i++
	}
	s := fmt.Sprintf(" %d%s/s", n/units[i].size, units[i].name)
	if k.burst == 0 {
		return s, hashByteExpire * 1000
	}
	n *= k.burst
	for i = 0; i < 2 && n < units[i].size; {
		i++
	}
	return s + fmt.Sprintf("%s%d%s", burst, n/units[i].size, units[i].name), hashFullExpire * 1000
}

// table prints what both Save and List have of the table, with dash before each name.
func (k *hashConfig) table(fam uint8, dash string, usual uint32) (s string) {
	say := func(name string, v, def uint32) {
		if v != def {
			s += fmt.Sprintf(" %s%s %d", dash, name, v)
		}
	}
	say("htable-size", k.size, 0)
	say("htable-max", k.max, 0)
	say("htable-gcinterval", k.gc, 1000)
	say("htable-expire", k.expire, usual)
	say("srcmask", uint32(k.src), uint32(familyBits(fam)))
	say("dstmask", uint32(k.dst), uint32(familyBits(fam)))
	if k.rateMatch {
		s += " " + dash + "rate-match"
		say("rate-interval", k.interval, 1)
	}
	return s
}

var matchHashlimit = &tables.Match{
	Name:     "hashlimit",
	Families: tables.V4V6,
	Doc:      "Matches at a limited rate, for each source or destination address or port (or group of addresses) on its own. Rules that name the same table share it, and what its first rule said of rate and mode holds for all.",
	Options: []tables.Option{
		{Name: "hashlimit-upto", Aliases: []string{"hashlimit"}, Type: hashRate{}, Negatable: true, Excludes: []string{"hashlimit-above"}, Arg: "rate", Doc: "packets[/second|/minute|/hour|/day], or bytes b/s, kb/s, mb/s: match while the rate is not above it"},
		{Name: "hashlimit-above", Type: hashRate{}, Negatable: true, Excludes: []string{"hashlimit-upto"}, Arg: "rate", Doc: "match while the rate is above it"},
		{Name: "hashlimit-burst", Type: hashBurstType{}, Arg: "number", Doc: "packets (default 5) or bytes that may pass at once before the rate counts"},
		{Name: "hashlimit-mode", Type: hashMode{}, Arg: "mode[,…]", Doc: "what is counted apart: srcip, srcport, dstip, dstport"},
		{Name: "hashlimit-name", Type: tables.String{Min: 1, Trim: 254}, Required: true, Arg: "name", Doc: "the table"},
		{Name: "hashlimit-htable-size", Type: tables.U32, Arg: "number", Doc: "hash buckets"},
		{Name: "hashlimit-htable-max", Type: tables.U32, Arg: "number", Doc: "entries; a packet that needs one more is dropped"},
		{Name: "hashlimit-htable-gcinterval", Type: tables.U32, Arg: "ms", Doc: "time between looks for expired entries"},
		{Name: "hashlimit-htable-expire", Type: tables.U32, Arg: "ms", Doc: "time after which an idle entry is forgotten"},
		{Name: "hashlimit-srcmask", Type: plen{}, Arg: "prefix", Doc: "prefix length by which source addresses are grouped"},
		{Name: "hashlimit-dstmask", Type: plen{}, Arg: "prefix", Doc: "prefix length by which destination addresses are grouped"},
		{Name: "hashlimit-rate-match", Type: tables.Flag, Doc: "compare the rate of each interval instead of filling a bucket"},
		{Name: "hashlimit-rate-interval", Type: hashInterval{}, Arg: "seconds", Doc: "the interval of --hashlimit-rate-match"},
	},
	First: func(a *tables.Args) error {
		k, err := hashConfigOf(a)
		a.State = k
		return err
	},
	Save: func(a *tables.Args) string {
		k := a.State.(*hashConfig)
		rate, usual := k.rateText(k.avg, " --hashlimit-burst ")
		s := " --hashlimit-upto"
		if k.above {
			s = " --hashlimit-above"
		}
		if s += rate; k.mode != 0 {
			s += " --hashlimit-mode " + hashModeText(k.mode, ",")
		}
		return s + " --hashlimit-name " + quoteWord(a.Str("hashlimit-name")) + k.table(a.Family, "--hashlimit-", usual)
	},
	List: func(a *tables.Args, _ bool) string {
		k := a.State.(*hashConfig)
		period := k.avg
		if k.interval != 0 {
			period *= uint64(k.interval)
		}
		rate, usual := k.rateText(period, " burst ")
		s := " limit: up to"
		if k.above {
			s = " limit: above"
		}
		if s += rate; k.mode != 0 {
			s += " mode " + hashModeText(k.mode, "-")
		}
		return s + k.table(a.Family, "", usual)
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		k := a.State.(*hashConfig)
		if err := k.check(a); err != nil {
			return nil, err
		}
		hold, err := hashTables.take(a.Rule, env, a.Family, a.Str("hashlimit-name"), func(t *hashTable) (*hashTable, error) {
			if t == nil {
				t = newHashTable(k)
			}
			return t, nil
		})
		if err != nil {
			return nil, err
		}
		above, bytes, rate := k.above, k.bytes, k.rateMatch
		return func(c *tables.Context, p *packet.Packet) bool {
			within, ok := hold.state.within(p, bytes, rate)
			if !ok {
				c.Hotdrop = true
				return false
			}
			return within != above
		}, nil
	},
}

// check is the kernel's.
func (k *hashConfig) check(a *tables.Args) error {
	width := uint8(familyBits(a.Family))
	switch {
	case k.gc == 0 || k.expire == 0:
		return errors.New("the table's interval and expiry cannot be 0")
	case k.src > width || k.dst > width:
		return errors.New("a mask is longer than an address, or has holes")
	case k.rateMatch:
		if k.avg == 0 || k.avg > math.MaxUint32 {
			return tables.Refuse(syscall.ERANGE, "the rate is too high or too low")
		}
	case k.bytes:
		if byteCredits(k.avg) == 0 {
			return errors.New("the rate is too high")
		}
	default:
		if packetCredits(k.avg*k.burst) < packetCredits(k.avg) {
			return tables.Refuse(syscall.ERANGE, "the burst is too large for so low a rate")
		}
	}
	return checkProcName(a.Str("hashlimit-name"))
}
