package iptables

import (
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
	var s splitter
	err = s.split(line)
	if err != nil {
		return nil, nil, err
	}
	return s.words, s.cols, nil
}

// splitter is Split for line after line.
type splitter struct {
	words []string
	cols  []int
	buf   []byte // a word that is not a part of the line as it stands
}

func (s *splitter) split(line string) error {
	s.words, s.cols = s.words[:0], s.cols[:0]
	for i := 0; i < len(line); {
		if c := line[i]; c == ' ' || c == '\t' || c == '\n' {
			i++
			continue
		}
		start := i
		for i < len(line) && line[i] != ' ' && line[i] != '\t' && line[i] != '\n' && line[i] != '"' {
			i++
		}
		word := line[start:i]
		if i < len(line) && line[i] == '"' {
			s.buf = append(s.buf[:0], word...)
			i = s.quoted(line, i+1)
			word = string(s.buf)
		}
		if len(word) > maxWord {
			return tables.Usagef("Parameter too long!")
		}
		if len(s.words) == maxWords {
			return tables.Usagef("Parser cannot handle more arguments")
		}
		s.words, s.cols = append(s.words, word), append(s.cols, start+1)
	}
	return nil
}

// quoted adds to buf what stands from i on up to the closing quote, and gives the
// place behind that. Without one, what there is to the line's end is the word.
func (s *splitter) quoted(line string, i int) int {
	for ; i < len(line); i++ {
		switch line[i] {
		case '"':
			return i + 1
		case '\\':
			if i++; i == len(line) {
				return i
			}
		}
		s.buf = append(s.buf, line[i])
	}
	return i
}
