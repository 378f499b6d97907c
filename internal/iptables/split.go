package iptables

import (
	"strings"

	"sluice/tables"
)

// Limits of a restore line, as iptables-restore has them.
const (
	maxWord  = 1023
	maxWords = 255
)

// Split splits a restore line into words. A double quote opens a stretch in
// which blanks are text and a backslash takes the next character as it is; the
// quote that closes it ends the word. cols has each word's place in the line
// (bytes, from 1).
func Split(line string) (words []string, cols []int, err error) {
	var cur strings.Builder
	open, escaped, quoted := false, false, false
	start := -1
	flush := func() error {
		if cur.Len() == 0 && !quoted {
			return nil
		}
		if len(words) == maxWords {
			return tables.Usagef("Parser cannot handle more arguments")
		}
		words, cols = append(words, cur.String()), append(cols, start+1)
		cur.Reset()
		quoted, start = false, -1
		return nil
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		end := false
		switch {
		case open && escaped:
			escaped = false
		case open && c == '\\':
			escaped = true
			continue
		case open && c == '"':
			open, end = false, true
		case open:
		case c == '"':
			open, quoted = true, true
			if start < 0 {
				start = i
			}
			continue
		case c == ' ' || c == '\t' || c == '\n':
			end = true
		}
		if end {
			if err := flush(); err != nil {
				return nil, nil, err
			}
			continue
		}
		if start < 0 {
			start = i
		}
		if cur.Len() == maxWord {
			return nil, nil, tables.Usagef("Parameter too long!")
		}
		cur.WriteByte(c)
	}
	return words, cols, flush()
}
