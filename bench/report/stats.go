package report

import (
	"math"
	"sort"
)

// Interval is a median with where it may lie.
type Interval struct {
	Median, Low, High float64
	N                 int
}

// Of summarises values: the median, and the narrowest interval between two
// of the sorted values that holds the true median with 90 % or more; with fewer
// than five values all of them.
func Of(v []float64) Interval {
	if len(v) == 0 {
		return Interval{math.NaN(), math.NaN(), math.NaN(), 0}
	}
	s := append([]float64{}, v...)
	sort.Float64s(s)
	n := len(s)
	m := s[n/2]
	if n%2 == 0 {
		m = (s[n/2-1] + s[n/2]) / 2
	}
	// The chance that fewer than k+1 of n values lie below the median.
	k, tail, term := 0, 0.0, math.Pow(0.5, float64(n))
	for i := 0; i < n/2; i++ {
		tail += term
		if 2*tail > 0.1 {
			break
		}
		k = i
		term *= float64(n-i) / float64(i+1)
	}
	return Interval{m, s[k], s[n-1-k], n}
}

// Summary is the median of a row's values.
func (r *Row) Summary() Interval {
	if r == nil {
		return Of(nil)
	}
	var v []float64
	for _, x := range r.Values {
		if x != nil {
			v = append(v, *x)
		}
	}
	return Of(v)
}

// Ratio is a over b, by pairs of the same round.
func Ratio(a, b *Row) Interval {
	return pairs(a, b, func(x, y float64) (float64, bool) { return x / y, y != 0 })
}

// Difference is a minus b, by pairs of the same round.
func Difference(a, b *Row) Interval {
	return pairs(a, b, func(x, y float64) (float64, bool) { return x - y, true })
}

func pairs(a, b *Row, f func(x, y float64) (float64, bool)) Interval {
	if a == nil || b == nil {
		return Of(nil)
	}
	var v []float64
	for i := range min(len(a.Values), len(b.Values)) {
		if x, y := a.Values[i], b.Values[i]; x != nil && y != nil {
			if z, ok := f(*x, *y); ok {
				v = append(v, z)
			}
		}
	}
	return Of(v)
}
