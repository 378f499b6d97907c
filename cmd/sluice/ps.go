package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/control"
)

// info is what a router says of itself in a list.
type info struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Config  string    `json:"config"`
	Socket  string    `json:"socket"`
}

func (a *app) psCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List this user's running routers",
		Args:  cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			all, err := control.List()
			if err != nil {
				return err
			}
			infos, errs := make([]info, len(all)), make([]error, len(all))
			var wg sync.WaitGroup
			for i, r := range all {
				wg.Go(func() { infos[i], errs[i] = askInfo(ctx, r) })
			}
			wg.Wait()
			list := []info{}
			for i, r := range all {
				if errs[i] != nil {
					fmt.Fprintf(a.stderr, "sluice: %s: %v\n", r.Name, errs[i])
					continue
				}
				list = append(list, infos[i])
			}
			if asJSON {
				return writeJSON(a.stdout, list)
			}
			return printList(a.stdout, list, time.Now())
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// askInfo asks one router; a router that hangs is not waited for.
func askInfo(ctx context.Context, r control.Running) (info, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	i := info{Name: r.Name, Socket: r.Path}
	var out bytes.Buffer
	status, err := control.Call(ctx, r.Path, []string{"info"}, nil, &out, io.Discard)
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &i)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("the router on %s does not answer", r.Path)
	}
	i.Name, i.Socket = r.Name, r.Path
	return i, err
}

func printList(w io.Writer, list []info, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tPID\tUP\tVERSION\tCONFIG\tSOCKET")
	for _, i := range list {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n", i.Name, i.PID, now.Sub(i.Started).Truncate(time.Second), i.Version, i.Config, i.Socket)
	}
	return t.Flush()
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
