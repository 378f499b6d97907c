package ext

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/packet"
	"sluice/tables"
)

const (
	lastSecond   = 86399      // of a day
	lastDate     = 1<<31 - 1  // what --datestop is by default
	allWeekdays  = 0xfe       // bits 1 (Monday) to 7
	allMonthdays = 0xfffffffe // bits 1 to 31
)

var weekdayNames = [...]string{"", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}

// daytime is hh:mm[:ss], in seconds in Value.Lo.
type daytime struct{}

func (daytime) Args() int { return 1 }

func (daytime) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	bad := func(s string) error {
		return tables.Usagef("invalid time \"%s\" specified, should be hh:mm[:ss] format and within the boundaries", s)
	}
	h, rest, ok := uint64(0), text[0], true // parts may be empty
	if !strings.HasPrefix(rest, ":") {
		h, rest, ok = tables.Strtoul(rest, 0, 23)
	}
	if !ok || !strings.HasPrefix(rest, ":") {
		return bad(text[0])
	}
	s := rest[1:]
	m, rest, ok := decimal(s, 59)
	if !ok || rest != "" && rest[0] != ':' {
		return bad(s)
	}
	sec := uint64(0)
	if rest != "" {
		s = rest[1:]
		if sec, rest, ok = decimal(s, 59); !ok || rest != "" {
			return bad(s)
		}
	}
	v.Lo = h*3600 + m*60 + sec
	return nil
}

func (daytime) Format(v *tables.Value) string {
	return fmt.Sprintf("%02d:%02d:%02d", v.Lo/3600, v.Lo/60%60, v.Lo%60)
}

// decimal reads digits up to most and gives what follows; none are 0.
func decimal(s string, most uint64) (n uint64, rest string, ok bool) {
	s = strings.TrimPrefix(strings.TrimLeft(s, " "), "+")
	if strings.HasPrefix(s, "-") {
		return 0, s, false
	}
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	if i == 0 {
		return 0, s, true
	}
	n, err := strconv.ParseUint(s[:i], 10, 64)
	return n, s[i:], err == nil && n <= most
}

// date is YYYY[-MM[-DD[Thh[:mm[:ss]]]]] in UTC, as Unix time in Value.Lo.
type date struct{}

func (date) Args() int { return 1 }

func (date) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	bad := tables.Usagef("Invalid date \"%s\" specified. Should be YYYY[-MM[-DD[Thh[:mm[:ss]]]]]", text[0])
	part := [6]uint64{0, 1, 1}
	least, most := [6]uint64{1970, 0, 0, 0, 0, 0}, [6]uint64{2038, 12, 31, 23, 59, 59}
	s := text[0]
	for i := range part {
		n, rest, ok := decimal(s, most[i])
		if !ok || n < least[i] {
			return bad
		}
		part[i] = n
		if rest == "" {
			break
		}
		if i == 5 || rest[0] != "--T::"[i] {
			return bad
		}
		s = rest[1:]
	}
	t := time.Date(int(part[0]), time.Month(part[1]), int(part[2]), int(part[3]), int(part[4]), int(part[5]), 0, time.UTC)
	if t.Unix() < 0 { // month or day 0 are those before
		return &tables.Error{Code: tables.ExitOther, Before: "mktime: No such file or directory", Msg: "mktime returned an error"}
	}
	v.Lo = uint64(t.Unix())
	return nil
}

func (date) Format(v *tables.Value) string {
	return time.Unix(int64(v.Lo), 0).UTC().Format("2006-01-02T15:04:05")
}

// localTZ is --localtz, which is taken with a warning.
type localTZ struct{ tables.Type }

func (localTZ) Parse(o *tables.OptionContext, _ []string, _ *tables.Value) error {
	o.Warn("WARNING: --localtz is being replaced by --kerneltz, since \"local\" is ambiguous. Note the kernel timezone has caveats - see manpage for details.")
	return nil
}

// dayList is a list of days as bits in Value.Lo; "!" turns into the other days.
type dayList struct{ month bool }

func (dayList) Args() int { return 1 }

func (t dayList) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	for rest := text[0]; rest != ""; {
		var w string
		w, rest, _ = strings.Cut(rest, ",")
		if t.month && w == "" {
			continue
		}
		day := weekday
		if t.month {
			day = monthday
		}
		n, err := day(w)
		if err != nil {
			return err
		}
		v.Lo |= 1 << n
	}
	all := uint64(allWeekdays)
	if t.month {
		all = allMonthdays
	}
	if v.Not {
		v.Lo, v.Not = ^v.Lo, false
	}
	v.Lo &= all
	return nil
}

// monthday reads the first two characters only, as iptables does.
func monthday(w string) (uint64, error) {
	w = w[:min(2, len(w))]
	n, rest, ok := tables.Strtoul(strings.Replace(w, "-0", "0", 1), 0, 31)
	if !ok || rest != "" {
		return 0, tables.Usagef("%s is not a valid day for --monthdays", w)
	}
	return n, nil
}

// weekday reads the first three characters: a number, of which the lowest five
// bits count, or a name by its first two letters.
func weekday(w string) (uint64, error) {
	w = w[:min(3, len(w))]
	digits, minus := strings.CutPrefix(w, "-")
	if digits == "" {
		digits = "0"
	}
	n, rest, ok := tables.Strtoul(digits, 0, all32)
	if minus {
		n = -n
	}
	switch {
	case ok && rest == "" && n == 0 && w != "-":
		return 0, tables.Usagef("No, the week does NOT begin with Sunday.")
	case ok && rest == "" && n != 0:
		return n % 32, nil
	}
	for i, name := range weekdayNames {
		if i > 0 && len(w) >= 2 && w[:2] == name[:2] {
			return uint64(i), nil
		}
	}
	return 0, tables.Usagef("%s is not a valid day specifier", w)
}

func (t dayList) Format(v *tables.Value) string {
	var s []string
	for i := 1; i < 32; i++ {
		switch {
		case v.Lo>>i&1 == 0:
		case t.month:
			s = append(s, fmt.Sprint(i))
		default:
			s = append(s, weekdayNames[i])
		}
	}
	return strings.Join(s, ",")
}

// ordinals are the month's days as -L prints them.
func ordinals(days uint64) string {
	var s []string
	for i := 1; i < 32; i++ {
		if days>>i&1 != 0 {
			s = append(s, fmt.Sprint(i, [...]string{"th", "st", "nd", "rd", "th", "th", "th", "th", "th", "th"}[i%10]))
		}
	}
	return strings.ReplaceAll(strings.Join(s, ","), " ", "")
}

// timeSpec is what the options come to.
type timeSpec struct {
	from, to              int64 // dates, Unix time
	start, stop           int64 // seconds of a day
	weekdays, monthdays   uint64
	contiguous, localTime bool
}

func timeSpecOf(a *tables.Args) *timeSpec {
	or := func(option string, def uint64) uint64 {
		if v := a.Get(option); v.Set {
			return v.Lo
		}
		return def
	}
	return &timeSpec{
		from: int64(or("datestart", 0)), to: int64(or("datestop", lastDate)),
		start: int64(or("timestart", 0)), stop: int64(or("timestop", lastSecond)),
		weekdays: or("weekdays", allWeekdays), monthdays: or("monthdays", allMonthdays),
		contiguous: a.Has("contiguous"), localTime: a.Has("kerneltz") || a.Has("localtz"),
	}
}

var matchTime = &tables.Match{
	Name:     "time",
	Families: tables.V4V6,
	Doc:      "Matches by the time of day, the day and the date at which the packet is there, in UTC.",
	Options: []tables.Option{
		{Name: "timestart", Type: daytime{}, Arg: "hh:mm[:ss]", Doc: "from this time of day"},
		{Name: "timestop", Type: daytime{}, Arg: "hh:mm[:ss]", Doc: "to this time of day, perhaps the next day's"},
		{Name: "monthdays", Type: dayList{month: true}, Negatable: true, Arg: "day[,day]…", Doc: "days of the month"},
		{Name: "weekdays", Type: dayList{}, Negatable: true, Arg: "day[,day]…", Doc: "days of the week: Mon to Sun, or 1 to 7"},
		{Name: "datestart", Type: date{}, Arg: "YYYY[-MM[-DD[Thh[:mm[:ss]]]]]", Doc: "from this date"},
		{Name: "datestop", Type: date{}, Arg: "YYYY[-MM[-DD[Thh[:mm[:ss]]]]]", Doc: "to this date"},
		{Name: "contiguous", Type: tables.Flag, Doc: "hours after midnight belong to the day before"},
		{Name: "localtz", Type: localTZ{tables.Flag}, Excludes: []string{"utc"}, Doc: "same as --kerneltz"},
		{Name: "utc", Type: tables.Flag, Excludes: []string{"localtz", "kerneltz"}, Doc: "times are in UTC, the default"},
		{Name: "kerneltz", Type: tables.Flag, Excludes: []string{"utc"}, Doc: "times are in the kernel's time zone"},
	},
	First: func(a *tables.Args) error {
		if t := timeSpecOf(a); t.contiguous && t.start < t.stop {
			return tables.Usagef("time: --contiguous only makes sense when stoptime is smaller than starttime")
		}
		return nil
	},
	Final: func(a *tables.Args) error {
		for _, o := range []string{"monthdays", "weekdays"} {
			if v := a.Get(o); v.Set && v.Lo == 0 {
				return tables.Usagef("time: \"--%s\" leaves no day", o)
			}
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		t := timeSpecOf(a)
		var s string
		if t.start != 0 || t.stop != lastSecond {
			s += " --timestart " + daytime{}.Format(&tables.Value{Lo: uint64(t.start)}) + " --timestop " + daytime{}.Format(&tables.Value{Lo: uint64(t.stop)})
		}
		if t.monthdays != allMonthdays {
			s += " --monthdays " + dayList{month: true}.Format(&tables.Value{Lo: t.monthdays})
		}
		if t.weekdays != allWeekdays {
			s += " --weekdays " + dayList{}.Format(&tables.Value{Lo: t.weekdays})
		}
		if t.from != 0 {
			s += " --datestart " + date{}.Format(&tables.Value{Lo: uint64(t.from)})
		}
		s += " --datestop " + date{}.Format(&tables.Value{Lo: uint64(t.to)})
		if t.localTime {
			s += " --kerneltz"
		}
		if t.contiguous {
			s += " --contiguous"
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		t := timeSpecOf(a)
		s := " TIME"
		if t.start != 0 || t.stop != lastSecond {
			s += " from " + daytime{}.Format(&tables.Value{Lo: uint64(t.start)}) + " to " + daytime{}.Format(&tables.Value{Lo: uint64(t.stop)})
		}
		if t.weekdays != allWeekdays {
			s += " on " + dayList{}.Format(&tables.Value{Lo: t.weekdays})
		}
		if t.monthdays != allMonthdays {
			s += " on " + ordinals(t.monthdays)
		}
		day := func(x int64) string { return time.Unix(x, 0).UTC().Format("2006-01-02 15:04:05") }
		if t.from != 0 {
			s += " starting from " + day(t.from)
		}
		if t.to != lastDate {
			s += " until date " + day(t.to)
		}
		if !t.localTime {
			s += " UTC"
		}
		if t.contiguous {
			s += " contiguous"
		}
		return s
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		t := timeSpecOf(a)
		wall := func(int64) time.Time { return time.Now() }
		if env != nil && env.Wall != nil {
			wall = env.Wall
		}
		zone := &kernelZone{}
		return func(_ *tables.Context, p *packet.Packet) bool {
			now := wall(p.Now).Unix()
			if t.localTime {
				now -= zone.west(p.Now)
			}
			return t.has(now)
		}, nil
	},
}

// has says whether a moment, Unix time, is in it.
func (t *timeSpec) has(now int64) bool {
	if now < t.from || now > t.to {
		return false
	}
	second := now % 86400
	if t.start < t.stop {
		if second < t.start || second > t.stop {
			return false
		}
	} else {
		if second < t.start && second > t.stop {
			return false
		}
		if t.contiguous && second <= t.stop {
			now -= 86400
		}
	}
	at := time.Unix(now, 0).UTC()
	day := int(at.Weekday())
	if day == 0 {
		day = 7
	}
	return t.weekdays>>day&1 != 0 && (t.monthdays == allMonthdays || t.monthdays>>at.Day()&1 != 0)
}

// kernelZone is how far the kernel's time zone is behind UTC, in seconds; it is
// asked for once a second at most.
type kernelZone struct {
	until, seconds atomic.Int64
}

func (z *kernelZone) west(now int64) int64 {
	if now >= z.until.Load() {
		var tz struct{ minutesWest, dst int32 }
		if _, _, e := unix.RawSyscall(unix.SYS_GETTIMEOFDAY, 0, uintptr(unsafe.Pointer(&tz)), 0); e == 0 {
			z.seconds.Store(int64(tz.minutesWest) * 60)
		}
		z.until.Store(now + 1e9)
	}
	return z.seconds.Load()
}
