// Package bench measures the router in memory: no device and no system call,
// the pipeline alone. Run it with `make bench`.
package bench
