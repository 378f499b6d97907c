package packettest

import "strings"

// Words splits a line at blanks as a shell does, as far as double quotes go: they
// group, and a backslash takes what follows as it is.
func Words(s string) (out []string) {
	var b strings.Builder
	in, word := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
			word = true
		case c == '"':
			in, word = !in, true
		case c == ' ' && !in:
			if word {
				out = append(out, b.String())
				b.Reset()
				word = false
			}
		default:
			b.WriteByte(c)
			word = true
		}
	}
	if word {
		out = append(out, b.String())
	}
	return out
}
