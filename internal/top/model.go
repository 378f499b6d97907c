package top

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
)

// Source gives samples.
type Source func() (*Sample, error)

// Model is the program's state, for bubbletea.
type Model struct {
	source   Source
	interval time.Duration

	now, was      Sample
	err           error
	view          int
	sort          map[int]int // column by view; -1: as it comes
	reverse       bool
	filter        string
	typing        bool
	paused        bool
	top           int
	width, height int
}

type sampleMsg struct {
	s   *Sample
	err error
}
type tickMsg struct{}

// defaultSort is the busiest first.
var defaultSort = []int{2, -1, 7, 3, 1}

// New makes a Model.
func New(source Source, interval time.Duration) *Model {
	m := &Model{source: source, interval: interval, sort: map[int]int{}, width: 100, height: 30}
	for i, c := range defaultSort {
		m.sort[i] = c
	}
	return m
}

// Run shows it until the user quits.
func (m *Model) Run(in io.Reader, out io.Writer) error {
	_, err := tea.NewProgram(m, tea.WithInput(in), tea.WithOutput(out)).Run()
	return err
}

// Init is part of tea.Model.
func (m *Model) Init() tea.Cmd { return m.fetch }

func (m *Model) fetch() tea.Msg {
	s, err := m.source()
	return sampleMsg{s, err}
}

// Update is part of tea.Model.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch x := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = x.Width, x.Height
	case sampleMsg:
		if m.err = x.err; x.err == nil && !m.paused {
			m.was, m.now = m.now, *x.s
		}
		return m, tea.Tick(m.interval, func(time.Time) tea.Msg { return tickMsg{} })
	case tickMsg:
		return m, m.fetch
	case tea.KeyPressMsg:
		return m, m.key(x)
	}
	return m, nil
}

func (m *Model) key(k tea.KeyPressMsg) tea.Cmd {
	if m.typing {
		switch k.String() {
		case "enter":
			m.typing = false
		case "esc":
			m.typing, m.filter = false, ""
		case "backspace":
			if r := []rune(m.filter); len(r) > 0 {
				m.filter = string(r[:len(r)-1])
			}
		case "ctrl+c":
			return tea.Quit
		default:
			m.filter += k.Text
		}
		m.top = 0
		return nil
	}
	switch s := k.String(); s {
	case "q", "ctrl+c":
		return tea.Quit
	case "tab", "right", "l":
		m.view, m.top = (m.view+1)%len(Views), 0
	case "shift+tab", "left", "h":
		m.view, m.top = (m.view+len(Views)-1)%len(Views), 0
	case "1", "2", "3", "4", "5":
		m.view, m.top = int(s[0]-'1'), 0
	case "s":
		m.sort[m.view]++
		if m.sort[m.view] >= len(build(Views[m.view], &m.now, &m.was).head) {
			m.sort[m.view] = 0
		}
	case "S":
		if m.sort[m.view]--; m.sort[m.view] < 0 {
			m.sort[m.view] = len(build(Views[m.view], &m.now, &m.was).head) - 1
		}
	case "r":
		m.reverse = !m.reverse
	case "/":
		m.typing = true
	case "esc":
		m.filter = ""
	case "space", "p":
		m.paused = !m.paused
	case "down", "j":
		m.top++
	case "up", "k":
		m.top = max(m.top-1, 0)
	case "pgdown":
		m.top += max(m.height-5, 1)
	case "pgup":
		m.top = max(m.top-max(m.height-5, 1), 0)
	case "home":
		m.top = 0
	}
	return nil
}

// style is a terminal's attribute (SGR).
type style string

const (
	headStyle style = "1"  // bold
	dimStyle  style = "2"  // faint
	tabStyle  style = "7"  // reverse
	badStyle  style = "31" // red
)

func (s style) Render(text string) string { return "\x1b[" + string(s) + "m" + text + "\x1b[m" }

// View is part of tea.Model.
func (m *Model) View() tea.View {
	v := tea.NewView(m.text())
	v.AltScreen = true
	return v
}

func (m *Model) text() string {
	var b strings.Builder
	s := &m.now.Status
	fmt.Fprintf(&b, "%s  up %s  %d of %d connections", headStyle.Render("sluice "+s.Version), time.Duration(s.Uptime*float64(time.Second)).Truncate(time.Second), s.Conntrack.Count, s.Conntrack.Max)
	if m.paused {
		b.WriteString("  (paused)")
	}
	b.WriteByte('\n')
	for i, v := range Views {
		name := fmt.Sprintf(" %d %s ", i+1, v)
		if i == m.view {
			name = tabStyle.Render(name)
		}
		b.WriteString(name)
	}
	b.WriteByte('\n')
	if m.err != nil {
		b.WriteString(badStyle.Render(m.err.Error()) + "\n")
	}
	t := build(Views[m.view], &m.now, &m.was)
	t.arrange(m.filter, m.sort[m.view], m.reverse)
	lines := t.lines(m.width, m.sort[m.view])
	b.WriteString(headStyle.Render(lines[0]) + "\n")
	lines = lines[1:]
	room := max(m.height-5, 1)
	m.top = min(m.top, max(len(lines)-room, 0))
	for _, l := range lines[m.top:min(m.top+room, len(lines))] {
		b.WriteString(l + "\n")
	}
	foot := "tab view  s sort  r reverse  / filter  space pause  q quit"
	if m.typing || m.filter != "" {
		foot = "filter: " + m.filter
		if m.typing {
			foot += "_"
		}
	}
	b.WriteString(dimStyle.Render(foot))
	return b.String()
}

// Once writes all views as text, with the rates between two samples.
func Once(w io.Writer, now, was *Sample, views []string) error {
	for i, v := range Views {
		if len(views) > 0 && !slices.Contains(views, v) {
			continue
		}
		t := build(v, now, was)
		t.arrange("", defaultSort[i], false)
		if _, err := fmt.Fprintf(w, "%s\n\n", strings.Join(t.lines(0, -1), "\n")); err != nil {
			return err
		}
	}
	return nil
}
