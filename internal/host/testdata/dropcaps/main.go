// Command dropcaps drops to CAP_NET_ADMIN with many threads about and prints
// what each of its threads then has.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"sluice/internal/host"
)

func main() {
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			runtime.LockOSThread()
			wg.Done()
			time.Sleep(time.Hour)
		}()
	}
	wg.Wait()
	if err := host.DropCapabilities(host.Needed("")...); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(files) < 9 {
		fmt.Println("threads:", len(files), err)
		os.Exit(1)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(l, "Cap") || strings.HasPrefix(l, "NoNewPrivs") {
				fmt.Println(strings.Join(strings.Fields(l), " "))
			}
		}
	}
	fmt.Println("has:", host.Has(host.CapNetAdmin), host.Has(host.CapSysAdmin))
}
