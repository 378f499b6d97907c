package ext

import (
	"math"
	"regexp"
	"strconv"
	"strings"
)

// What C's strtod takes, after blanks and a sign.
var (
	decimalFloat = regexp.MustCompile(`^(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?`)
	hexFloat     = regexp.MustCompile(`^0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][-+]?[0-9]+)?`)
	namedFloat   = regexp.MustCompile(`^(?i:infinity|inf|nan(?:\([0-9a-z_]*\))?)`)
)

// blanks are what C's functions skip before a number.
const blanks = " \t\n\v\f\r"

// strtod reads a number as C's strtod does and gives what follows it; ok is
// false where there is none. One that is too large is infinite.
func strtod(s string) (x float64, rest string, ok bool) {
	d := strings.TrimLeft(s, blanks)
	sign := ""
	if d != "" && (d[0] == '-' || d[0] == '+') {
		sign, d = d[:1], d[1:]
	}
	num := hexFloat.FindString(d)
	exact := num
	switch {
	case num == "":
		if num = decimalFloat.FindString(d); num == "" {
			num = namedFloat.FindString(d)
		}
		exact, _, _ = strings.Cut(num, "(")
	case !strings.ContainsAny(num, "pP"):
		exact += "p0" // which Go wants
	}
	if num == "" {
		return 0, s, false
	}
	x, _ = strconv.ParseFloat(exact, 64) // its error says that x is infinite
	if sign == "-" {
		x = -x
	}
	return x, d[len(num):], true
}

// toUint32 is what a 64-bit machine makes of a number for an unsigned int of C:
// the low bits, and nothing of what 64 bits do not hold.
func toUint32(x float64) uint32 {
	if math.IsNaN(x) || x >= 1<<63 || x < -1<<63 {
		return 0
	}
	return uint32(int64(x))
}
