// Command testreport reads `go test -json` on standard input, prints the
// packages' results and the output of what failed, and ends with every skip's
// reason and the counts. It exits with 1 if anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
	ImportPath                    string
	Elapsed                       float64
}

func main() {
	output := map[string][]string{} // package/test → lines
	results := map[string]string{}  // package/test → pass, fail, skip
	var failed, skips []string
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	dec := json.NewDecoder(in)
	for {
		var e event
		if err := dec.Decode(&e); err != nil {
			break
		}
		key := e.Package + e.ImportPath + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			output[key] = append(output[key], e.Output)
		case "build-fail":
			fmt.Print(strings.Join(output[key], ""))
			failed = append(failed, e.ImportPath+" (build)")
		case "pass", "fail", "skip":
			if e.Test == "" {
				fmt.Printf("%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
				if e.Action == "fail" {
					fmt.Print(strings.Join(output[key], ""))
					failed = append(failed, e.Package)
				}
				continue
			}
			results[key] = e.Action
			switch e.Action {
			case "fail":
				fmt.Printf("--- FAIL %s\n%s", key, strings.Join(output[key], ""))
			case "skip":
				skips = append(skips, key+": "+reason(output[key]))
			}
			delete(output, key)
		}
	}
	count := map[string]int{}
	for _, r := range results {
		count[r]++
	}
	sort.Strings(skips)
	for _, s := range skips {
		fmt.Println("skipped:", s)
	}
	if len(failed) > 0 {
		fmt.Println("failed:", strings.Join(failed, ", "))
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", count["pass"], max(count["fail"], len(failed)), count["skip"])
	if len(failed) > 0 || count["fail"] > 0 || count["pass"] == 0 {
		os.Exit(1)
	}
}

// reason is what t.Skip was given: the last line that is not go test's own.
func reason(lines []string) string {
	for i := len(lines) - 1; i >= 0; i-- {
		l := strings.TrimSpace(lines[i])
		if l != "" && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "===") {
			return l
		}
	}
	return "no reason given"
}
