// Package config reads a configuration file, and says everything that is wrong
// with it at once, each with file, line and column.
package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sluice/router"
)

// Problem is one thing that is wrong, and where.
type Problem struct {
	Pos  router.Position
	Text string
}

func (p Problem) String() string { return p.Pos.String() + ": " + p.Text }

// Problems is all that is wrong with a configuration, in the order of the file.
type Problems []Problem

// Error is one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// report collects problems and warnings while a configuration is read.
type report struct {
	errs, warns Problems
}

func (r *report) errorf(at router.Position, format string, args ...any) {
	r.errs = append(r.errs, Problem{at, fmt.Sprintf(format, args...)})
}

func (r *report) warnf(at router.Position, format string, args ...any) {
	r.warns = append(r.warns, Problem{at, fmt.Sprintf(format, args...)})
}

// sorted puts the problems of one file in its order; those of other files
// (restore files) stay behind them, in the order they were found.
func sorted(ps Problems, file string) Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if af, bf := a.Pos.File == file, b.Pos.File == file; af != bf {
			if af {
				return -1
			}
			return 1
		} else if !af {
			return 0
		}
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column))
	})
	return ps
}
