package config

import "bytes"

// maxDepth is how deep arrays and tables may lie in each other. No key of
// sluice's needs more than four; the TOML library takes quadratic time, and a
// stack frame for each.
const maxDepth = 100

// tooDeep finds the first bracket, or dot of a key, that leads deeper than
// maxDepth; -1 if none does.
func tooDeep(text []byte) int {
	depth, dots := 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '#':
			n := bytes.IndexByte(text[i:], '\n')
			if n < 0 {
				return -1
			}
			i += n
			dots = 0
		case '"', '\'':
			i = stringEnd(text, i, c)
		case '.':
			if dots++; dots > maxDepth {
				return i
			}
		case '\n', ',', '=':
			dots = 0
		case '[', '{':
			if depth++; depth > maxDepth {
				return i
			}
		case ']', '}':
			depth = max(depth-1, 0)
		}
	}
	return -1
}

// stringEnd is the offset of the last quote of the string that begins at i, or
// of the end of a line or text that cuts it short.
func stringEnd(text []byte, i int, quote byte) int {
	long := bytes.HasPrefix(text[i:], []byte{quote, quote, quote})
	if long {
		i += 2
	}
	for i++; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && quote == '"':
			i++
		case c == '\n' && !long:
			return i
		case c == quote && !long:
			return i
		case c == quote && bytes.HasPrefix(text[i:], []byte{quote, quote, quote}):
			for i+3 < len(text) && text[i+3] == quote {
				i++
			}
			return i + 2
		}
	}
	return i
}
