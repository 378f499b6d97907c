package tables

import "runtime"

// Yield, called with a loop's index, lets others of the program run now and then
// in a loop over many rules. A worker that Go's collector has stopped for a moment
// would otherwise wait for this goroutine's turn to end, up to 10 ms.
func Yield(i int) {
	if i&31 == 31 {
		runtime.Gosched()
	}
}
