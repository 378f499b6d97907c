package memory

import (
	"strings"
	"testing"
)

// BenchmarkMemory runs every case but the huge ones.
func BenchmarkMemory(b *testing.B) {
	for _, c := range Cases() {
		b.Run(c.Name, func(b *testing.B) {
			if c.Huge && testing.Short() {
				b.Skip("-short: this case needs gigabytes of memory")
			}
			run, err := c.Setup()
			if err != nil {
				b.Fatal(err)
			}
			defer run.Close()
			b.ReportAllocs()
			b.ResetTimer()
			d, err := run.Do(b.N)
			b.StopTimer()
			if err != nil {
				b.Fatal(err)
			}
			if s, ok := run.(Sized); ok {
				b.ReportMetric(s.Bytes(), "B/connection")
				return
			}
			b.ReportMetric(float64(d.Nanoseconds())/float64(b.N), "ns/op")
			if c.Unit == "packet" {
				b.ReportMetric(float64(b.N)/d.Seconds()/1e6, "Mpps")
			}
		})
	}
}

// TestCases: every case moves its packets; the large ones are left to the benchmark.
func TestCases(t *testing.T) {
	for _, c := range Cases() {
		if c.Flows > 1000 || c.Rules > 1000 || c.Huge || c.Unit == "connection" || strings.HasSuffix(c.Name, "=1000000") {
			continue
		}
		n := 3000
		if c.Unit == "collection" {
			n = 1
		}
		t.Run(c.Name, func(t *testing.T) {
			run, err := c.Setup()
			if err != nil {
				t.Fatal(err)
			}
			defer run.Close()
			for range 2 {
				if d, err := run.Do(n); err != nil || d <= 0 {
					t.Fatalf("%v, %v", d, err)
				}
			}
		})
	}
}
