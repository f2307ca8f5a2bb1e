// SPDX-License-Identifier: Apache-2.0

package lag

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"time"
)

// queue is how many pieces of a watch may be on their way; more wait in the
// API server.
const queue = 4096

// Proxy passes requests on to one API server.
type Proxy struct {
	// Upstream is the API server's URL, Transport how it is trusted. The
	// caller's own token goes with the request; there is no other identity.
	Upstream  *url.URL
	Transport *tls.Config
	// Delay holds watch events of Resources (plural names) back.
	Delay     time.Duration
	Resources []string
}

// Handler returns the proxy as a handler.
func (p Proxy) Handler() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(p.Upstream) },
		Transport:      &http.Transport{TLSClientConfig: p.Transport, ForceAttemptHTTP2: true},
		ModifyResponse: p.hold,
	}
}

// hold puts the delay between the API server and the body of a watch.
func (p Proxy) hold(response *http.Response) error {
	if response.StatusCode == http.StatusOK && p.late(response.Request) {
		response.Body = newDelayed(response.Body, p.Delay)
	}
	return nil
}

// late reports whether a request is a watch of one of the resources:
// /apis/GROUP/VERSION/[namespaces/NAMESPACE/]RESOURCE?watch=1.
func (p Proxy) late(r *http.Request) bool {
	watch := r.URL.Query().Get("watch")
	if watch == "" || watch == "0" || watch == "false" {
		return false
	}
	return slices.ContainsFunc(strings.Split(r.URL.Path, "/"), func(part string) bool {
		return slices.Contains(p.Resources, part)
	})
}

// Serve serves the proxy with a certificate until ctx ends.
func (p Proxy) Serve(ctx context.Context, address, certificate, key string) error {
	server := &http.Server{Addr: address, Handler: p.Handler(), ReadHeaderTimeout: 30 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.ListenAndServeTLS(certificate, key); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// delayed is a stream whose every byte comes later by the same time.
type delayed struct {
	source io.ReadCloser
	pieces chan piece
	closed chan struct{}
	rest   []byte
	err    error
}

type piece struct {
	due  time.Time
	data []byte
	err  error
}

func newDelayed(source io.ReadCloser, delay time.Duration) *delayed {
	d := &delayed{source: source, pieces: make(chan piece, queue), closed: make(chan struct{})}
	go d.fill(delay)
	return d
}

func (d *delayed) fill(delay time.Duration) {
	for {
		buffer := make([]byte, 16<<10)
		n, err := d.source.Read(buffer)
		select {
		case d.pieces <- piece{due: time.Now().Add(delay), data: buffer[:n], err: err}:
		case <-d.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

func (d *delayed) Read(to []byte) (int, error) {
	for len(d.rest) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		select {
		case p := <-d.pieces:
			timer := time.NewTimer(time.Until(p.due))
			select {
			case <-timer.C:
			case <-d.closed:
				timer.Stop()
				return 0, io.ErrClosedPipe
			}
			d.rest, d.err = p.data, p.err
		case <-d.closed:
			return 0, io.ErrClosedPipe
		}
	}
	n := copy(to, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// Close is called once, by the proxy.
func (d *delayed) Close() error {
	close(d.closed)
	return d.source.Close()
}
