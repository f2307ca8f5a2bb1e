// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

const (
	// relisten is how often the addresses are looked at, and a port that was taken is tried again.
	relisten = 5 * time.Second
	// lingerTime is how long a caller may keep a connection, maxCallers how many may.
	lingerTime = 2 * time.Second
	maxCallers = 256
)

// Server takes connections at this node's addresses and lets the caller end them: that it was taken is the answer.
type Server struct {
	// Addresses of this node, as of now.
	Addresses func(context.Context) ([]netip.Addr, error)
	Port      uint16
	Log       logr.Logger
}

// Run serves until ctx ends. A port that is taken is said once and tried on.
func (s *Server) Run(ctx context.Context) error {
	listeners := map[netip.Addr]net.Listener{}
	said := map[netip.Addr]string{}
	slots := make(chan struct{}, maxCallers)
	var work sync.WaitGroup
	defer work.Wait()
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	for ctx.Err() == nil {
		wanted, err := s.Addresses(ctx)
		for a, l := range listeners {
			if err == nil && !slices.Contains(wanted, a) {
				_ = l.Close()
				delete(listeners, a)
			}
		}
		for _, a := range wanted {
			if listeners[a] != nil {
				continue
			}
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(int(s.Port))))
			if err != nil {
				if ctx.Err() == nil && said[a] != err.Error() {
					said[a] = err.Error()
					s.Log.Error(err, "other nodes' probes of this address are not answered; trying on")
				}
				continue
			}
			listeners[a] = l
			delete(said, a)
			work.Go(func() { accept(l, slots, &work) })
		}
		sleep(ctx, relisten)
	}
	return nil
}

// accept ends when the listener is closed.
func accept(l net.Listener, slots chan struct{}, work *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors
			continue
		}
		select {
		case slots <- struct{}{}:
			work.Go(func() {
				defer func() { <-slots }()
				_ = c.SetDeadline(time.Now().Add(lingerTime))
				_, _ = c.Read(make([]byte, 1)) // whoever closes first keeps the port for a minute: let it be the caller
				_ = c.Close()
			})
		default:
			_ = c.Close()
		}
	}
}
