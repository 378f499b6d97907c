package report

import (
	"fmt"
	"strings"
)

// Fill puts the report's tables into a Markdown text: what stands between the
// lines <!-- bench:NAME --> and <!-- bench:end --> is made anew. NAME is headline
// (the paths end to end), rootless, goals or memory.
func (r *Report) Fill(text string) (string, error) {
	const begin, mark, end = "<!-- bench:", " -->\n", "<!-- bench:end -->"
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(text, begin)
		out.WriteString(before)
		if !ok {
			return out.String(), nil
		}
		name, rest, ok := strings.Cut(rest, mark)
		if !ok {
			return "", fmt.Errorf("%q is not closed", begin+name)
		}
		_, after, ok := strings.Cut(rest, end)
		if !ok {
			return "", fmt.Errorf("bench:%s has no %s", name, end)
		}
		cells, err := r.block(name)
		if err != nil {
			return "", err
		}
		out.WriteString(begin + name + mark)
		fmt.Fprintf(&out, "%s, %d CPUs, %d GB, Linux %s, %s; %s, commit %s; medians of %d rounds.\n\n",
			r.Machine.CPU, r.Machine.CPUs, r.Machine.MemoryGB, r.Machine.Kernel, r.Machine.Go, r.When.UTC().Format("2006-01-02"), r.Commit, r.roundsOf(name))
		markdown(&out, cells)
		out.WriteString(end)
		text = after
	}
}

func (r *Report) roundsOf(block string) int {
	switch block {
	case "memory":
		return r.MemoryRounds()
	case "rootless":
		return r.Of("uplink", "tcp1").Summary().N
	}
	return r.Rounds()
}

// block is a table by its name in documents.
func (r *Report) block(name string) ([][]string, error) {
	switch name {
	case "headline":
		return r.headline(), nil
	case "rootless":
		return r.rootless(), nil
	case "goals":
		return r.goalTable().Cells, nil
	case "memory":
		t, _ := r.memoryTable(nil)
		return t.Cells, nil
	}
	return nil, fmt.Errorf("no table of the report is called %q", name)
}
