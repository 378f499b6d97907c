package ext

import (
	"fmt"
	"slices"
	"strconv"

	"sluice/packet"
	"sluice/tables"
)

var logLevels = []string{"emerg", "alert", "crit", "error", "warning", "notice", "info", "debug"}

// logLevel is a syslog level by name or number, in Value.Lo.
type logLevel struct{}

func (logLevel) Args() int { return 1 }

func (logLevel) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	if n, rest, ok := tables.Strtoul(text[0], 0, 7); ok && rest == "" {
		v.Lo = n
		return nil
	}
	i := slices.Index(logLevels, text[0])
	if text[0] == "panic" {
		i = 0
	}
	if i < 0 {
		return tables.Usagef("log level \"%s\" unknown\n", text[0])
	}
	v.Lo = uint64(i)
	return nil
}

func (logLevel) Format(v *tables.Value) string { return strconv.FormatUint(v.Lo, 10) }

const logLevelDefault = 4

var logFlags = []struct {
	option, list string
	flag         uint8
}{
	{"log-tcp-sequence", "tcp-sequence", tables.LogTCPSeq},
	{"log-tcp-options", "tcp-options", tables.LogTCPOptions},
	{"log-ip-options", "ip-options", tables.LogIPOptions},
	{"log-uid", "uid", tables.LogUID},
	{"log-macdecode", "macdecode", tables.LogMACDecode},
}

func logFlagBits(a *tables.Args) (bits uint8) {
	for _, f := range logFlags {
		if a.Has(f.option) {
			bits |= f.flag
		}
	}
	return bits
}

func logLevelOf(a *tables.Args) uint64 {
	if a.Has("log-level") {
		return a.Num("log-level")
	}
	return logLevelDefault
}

var targetLOG = &tables.Target{
	Name:     "LOG",
	Families: tables.V4V6,
	Doc:      "Writes a line about the packet to the log and goes on with the next rule.",
	Options: []tables.Option{
		{Name: "log-prefix", Type: tables.String{Min: 1, Trim: 29}, Arg: "text", Doc: "put before the line, up to 29 bytes"},
		{Name: "log-level", Type: logLevel{}, Arg: "level", Doc: "syslog level by name or number; default 4 (warning)"},
		{Name: "log-tcp-sequence", Type: tables.Flag, Doc: "with TCP sequence numbers"},
		{Name: "log-tcp-options", Type: tables.Flag, Doc: "with TCP options"},
		{Name: "log-ip-options", Type: tables.Flag, Doc: "with IP options"},
		{Name: "log-uid", Type: tables.Flag, Doc: "with the uid and gid of the local socket"},
		{Name: "log-macdecode", Type: tables.Flag, Doc: "with MAC addresses and protocol decoded"},
	},
	Save: func(a *tables.Args) string {
		var s string
		if a.Has("log-prefix") {
			s += " --log-prefix " + tables.Quote(a.Str("log-prefix"))
		}
		if n := logLevelOf(a); n != logLevelDefault {
			s += fmt.Sprintf(" --log-level %d", n)
		}
		for _, f := range logFlags {
			if a.Has(f.option) {
				s += " --" + f.option
			}
		}
		return s
	},
	List: func(a *tables.Args, numeric bool) string {
		s := " LOG"
		if numeric {
			s += fmt.Sprintf(" flags %d level %d", logFlagBits(a), logLevelOf(a))
		} else {
			names := [...]string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
			s += " level " + names[logLevelOf(a)&7]
			for _, f := range logFlags {
				if a.Has(f.option) {
					s += " " + f.list
				}
			}
		}
		if a.Has("log-prefix") {
			s += " prefix \"" + a.Str("log-prefix") + "\""
		}
		return s
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		prefix, level, flags := a.Str("log-prefix"), uint8(logLevelOf(a)), logFlagBits(a)
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.Log != nil {
				c.Log(prefix, level, flags, p)
			}
			return tables.Continue
		}, nil
	},
}
