package conntrackcmd

import (
	"fmt"
	"strconv"
	"strings"
)

// command is what is to be done.
type command uint8

const (
	cmdNone command = iota
	cmdList
	cmdCreate
	cmdAdd
	cmdUpdate
	cmdDelete
	cmdGet
	cmdFlush
	cmdEvent
	cmdCount
	cmdStats
	cmdVersion
	cmdHelp
	cmdLoad
)

// name is the command's long option.
func (c command) name() string {
	for _, l := range longs {
		if k, ok := commandOf(l.key); ok && k == c {
			return l.name
		}
	}
	return ""
}

// optSrc… number the options in the order in which they are checked.
const (
	optSrc = iota
	optDst
	optReplySrc
	optReplyDst
	optProto
	optTimeout
	optStatus
	optZero
	optEventMask
	optTupleSrc
	optTupleDst
	optMaskSrc
	optMaskDst
	optMark
	optID
	optFamily
	optSrcNAT
	optDstNAT
	optOutput
	optSecMark
	optBuffer
	optAnyNAT
	optZone
	optLabel
	optLabelAdd
	optLabelDel
	optOrigZone
	optReplyZone
	numOpts
)

var optNames = [numOpts]string{"src", "dst", "reply-src", "reply-dst", "protonum", "timeout", "status", "zero", "event-mask",
	"tuple-src", "tuple-dst", "mask-src", "mask-dst", "mark", "id", "family", "src-nat", "dst-nat", "output", "secmark",
	"buffer-size", "any-nat", "zone", "label", "label-add", "label-del", "orig-zone", "reply-zone"}

// rules says which options a command takes, one digit an option: 0 none, 1 it
// must be there, 2 it may, 3 original or reply addresses must.
var rules = map[command]string{
	cmdList:    "2222202200022202222202220022",
	cmdCreate:  "3333112000000200220000202022",
	cmdAdd:     "3333112000000200220000202022",
	cmdUpdate:  "2222222000022222222000022200",
	cmdDelete:  "2222222000022222222000220022",
	cmdGet:     "3333100000000020002000000000",
	cmdFlush:   "0000000000000002000000000000",
	cmdEvent:   "2222200020022202222222220022",
	cmdCount:   "0000000000000000000000000000",
	cmdStats:   "0000000000000000000000000000",
	cmdVersion: "0000000000000000000000000000",
	cmdHelp:    "0000200000000000000000000000",
	cmdLoad:    "2222222222222222222222222222",
}

var expectRules = map[command]string{
	cmdList:   "0000000000000002002000000000",
	cmdCreate: "1122112001111000000000000000",
	cmdDelete: "1122100000000000000000000000",
	cmdGet:    "1122100000000000000000000000",
	cmdFlush:  "0000000000000000000000000000",
	cmdEvent:  "0000000000000000002000000000",
	cmdCount:  "0000000000000000000000000000",
	cmdStats:  "0000000000000000000000000000",
}

// arg says whether an option takes an argument.
type arg uint8

const (
	argNone arg = iota
	argMust
	argMay
)

// long is one long option; key is its short letter or a number above 255.
type long struct {
	name string
	arg  arg
	key  int
}

// Keys of long options without a letter.
const (
	keyTupleSrc = 256 + iota
	keyTupleDst
	keyMaskSrc
	keyMaskDst
	keyLabelAdd
	keyLabelDel
	keyOrigZone
	keyReplyZone
	keyProto // and above: protocol options
)

var longs = []long{
	{"dump", argMay, 'L'}, {"create", argMay, 'I'}, {"delete", argMay, 'D'}, {"update", argMay, 'U'}, {"get", argMay, 'G'},
	{"flush", argMay, 'F'}, {"event", argMay, 'E'}, {"count", argMay, 'C'}, {"stats", argNone, 'S'}, {"add", argMay, 'A'},
	{"load-file", argMust, 'R'}, {"version", argNone, 'V'}, {"help", argNone, 'h'},
	{"orig-src", argMust, 's'}, {"src", argMust, 's'}, {"orig-dst", argMust, 'd'}, {"dst", argMust, 'd'},
	{"reply-src", argMust, 'r'}, {"reply-dst", argMust, 'q'}, {"protonum", argMust, 'p'}, {"timeout", argMust, 't'},
	{"status", argMust, 'u'}, {"zero", argNone, 'z'}, {"event-mask", argMust, 'e'}, {"tuple-src", argMust, keyTupleSrc},
	{"tuple-dst", argMust, keyTupleDst}, {"mask-src", argMust, keyMaskSrc}, {"mask-dst", argMust, keyMaskDst},
	{"mark", argMust, 'm'}, {"secmark", argMust, 'c'}, {"id", argMust, 'i'}, {"family", argMust, 'f'},
	{"src-nat", argMay, 'n'}, {"dst-nat", argMay, 'g'}, {"any-nat", argMay, 'j'}, {"output", argMust, 'o'},
	{"buffer-size", argMust, 'b'}, {"zone", argMust, 'w'}, {"label", argMust, 'l'}, {"label-add", argMust, keyLabelAdd},
	{"label-del", argMay, keyLabelDel}, {"orig-zone", argMust, keyOrigZone}, {"reply-zone", argMust, keyReplyZone},
}

// shorts maps letters that take no argument, must have one, or may.
var shorts = map[byte]arg{
	'L': argMay, 'I': argMay, 'U': argMay, 'D': argMay, 'G': argMay, 'E': argMay, 'F': argMay, 'A': argMay, 'C': argMay,
	'h': argNone, 'V': argNone, 'S': argNone, 'z': argNone, 'R': argMust,
	's': argMust, 'd': argMust, 'r': argMust, 'q': argMust, 'p': argMust, 't': argMust, 'u': argMust, 'e': argMust,
	'm': argMust, 'i': argMust, 'f': argMust, 'n': argMay, 'g': argMay, 'j': argMay, 'o': argMust, 'c': argMust,
	'b': argMust, 'w': argMust, 'l': argMust,
}

// getopt walks an argument list as getopt_long(3) does, operands moved behind.
type getopt struct {
	args  []string
	at    int
	rest  string // what is left of a cluster of letters
	longs []long
}

// usageError is a wrong command line: exit status 2, with the hint.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(f string, a ...any) error { return usageError{fmt.Sprintf(f, a...)} }

// next gives the next option; key 0: no more. attached says that the argument
// came in the same word.
func (g *getopt) next() (key int, val string, attached bool, err error) {
	if g.rest == "" {
		for g.at < len(g.args) && (!strings.HasPrefix(g.args[g.at], "-") || g.args[g.at] == "-") {
			g.at++
		}
		if g.at >= len(g.args) || g.args[g.at] == "--" {
			return 0, "", false, nil
		}
		w := g.args[g.at]
		g.at++
		if strings.HasPrefix(w, "--") {
			return g.long(w)
		}
		g.rest = w[1:]
	}
	word := g.args[g.at-1]
	c := g.rest[0]
	g.rest = g.rest[1:]
	a, ok := shorts[c]
	switch {
	case !ok:
		return 0, "", false, usagef("unknown option `%s'", word)
	case a == argNone:
		return int(c), "", false, nil
	case g.rest != "":
		val, g.rest = g.rest, ""
		return int(c), val, true, nil
	case a == argMust:
		if val, ok = g.take(); !ok && c == 'R' {
			return 0, "", false, usagef("unknown option `%s'", word)
		} else if !ok {
			return 0, "", false, usagef("option `%s' requires an argument", word)
		}
	}
	return int(c), val, false, nil
}

// take uses the next word as an argument, whatever it looks like.
func (g *getopt) take() (string, bool) {
	if g.at >= len(g.args) {
		return "", false
	}
	g.at++
	return g.args[g.at-1], true
}

// optional uses the next word if it is no option.
func (g *getopt) optional(attached bool) (string, bool) {
	if attached || g.rest != "" || g.at >= len(g.args) || strings.HasPrefix(g.args[g.at], "-") || strings.HasPrefix(g.args[g.at], "!") {
		return "", false
	}
	return g.take()
}

func (g *getopt) long(w string) (int, string, bool, error) {
	name, val, attached := strings.Cut(w[2:], "=")
	var hit *long
	for i := range g.longs {
		l := &g.longs[i]
		if l.name == name {
			hit = l
			break
		}
		if strings.HasPrefix(l.name, name) {
			if hit != nil && (hit.key != l.key || hit.arg != l.arg) {
				hit = nil
				for _, o := range g.longs[i:] {
					if o.name == name {
						hit = &o
					}
				}
				if hit == nil {
					return 0, "", false, usagef("unknown option `%s'", w)
				}
				break
			}
			hit = l
		}
	}
	switch {
	case hit == nil, hit.arg == argNone && attached:
		return 0, "", false, usagef("unknown option `%s'", w)
	case hit.arg == argMust && !attached:
		var ok bool
		if val, ok = g.take(); !ok && hit.key == 'R' {
			return 0, "", false, usagef("unknown option `%s'", w)
		} else if !ok {
			return 0, "", false, usagef("option `%s' requires an argument", w)
		}
	}
	return hit.key, val, attached, nil
}

// strtoul reads as much of a number as there is, as strtoul(3) with base 0.
func strtoul(s string) uint64 { n, _ := number(s); return n }

// atoi reads as much of a decimal number as there is.
func atoi(s string) (n int64) {
	s = strings.TrimLeft(s, " \t")
	i := 0
	if strings.HasPrefix(s, "-") || strings.HasPrefix(s, "+") {
		i = 1
	}
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, _ = strconv.ParseInt(s[:i], 10, 64)
	return n
}

func number(s string) (uint64, string) {
	s = strings.TrimLeft(s, " \t")
	base, digits := 10, "0123456789"
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		base, digits, s = 16, "0123456789abcdefABCDEF", s[2:]
	case strings.HasPrefix(s, "0"):
		base, digits = 8, "01234567"
	}
	i := 0
	for i < len(s) && strings.IndexByte(digits, s[i]) >= 0 {
		i++
	}
	n, _ := strconv.ParseUint(s[:i], base, 64)
	return n, s[i:]
}

// check holds the options given against what the command takes.
func check(rule string, given uint64) error {
	for i := range numOpts {
		switch has := given>>i&1 != 0; {
		case !has && rule[i] == '1':
			return usagef("You need to supply the `--%s' option for this command", optNames[i])
		case has && rule[i] == '0':
			return usagef("Illegal option `--%s' with this command", optNames[i])
		}
	}
	if rule[0] == '3' && given&3 != 3 && given&12 != 12 {
		return usagef("you have to specify `--src' and `--dst'")
	}
	return nil
}
