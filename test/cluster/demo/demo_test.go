// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestFlowsCountWhatTheySend(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	e, err := newEcho("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.serve(ctx)
	l := load{target: e.tcp.Addr().String(), length: 500 * time.Millisecond, streamRate: 200, datagramRate: 200, connectRate: 50}
	r, err := l.run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r.Stream.Error != "" || r.Stream.Sent < 50 || r.Stream.Sent != r.Stream.Back {
		t.Errorf("stream: %+v", r.Stream)
	}
	for name, c := range map[string]countReport{"datagrams": r.Datagram, "connects": r.Connect} {
		if c.Sent < 15 || c.Lost != 0 || c.Duplicates != 0 {
			t.Errorf("%s: %+v", name, c)
		}
	}
	cancel()
	e.wait()
}

func TestFlowsCountLoss(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	e, err := newEcho("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := e.tcp.Addr().String()
	e.serve(ctx)
	time.AfterFunc(200*time.Millisecond, cancel) // the server goes away half way
	l := load{target: target, length: 600 * time.Millisecond, datagramRate: 100, connectRate: 50}
	r, err := l.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Datagram.Lost == 0 || r.Connect.Lost == 0 || len(r.Connect.Errors) == 0 {
		t.Errorf("loss is not counted: %+v, %+v", r.Datagram, r.Connect)
	}
	e.wait()
}

func TestServerNamesItsCaller(t *testing.T) {
	request := httptest.NewRequest(http.MethodGet, "/x", nil)
	request.RemoteAddr = "[fd00::7]:1234"
	request.Header.Set("Accept", "application/json")
	w := httptest.NewRecorder()
	tell(w, request)
	var a answer
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || a.Caller != "[fd00::7]:1234" || a.Hostname == "" {
		t.Errorf("%v, %+v", err, a)
	}
}

func TestBadCommandLines(t *testing.T) {
	for _, args := range [][]string{{"nothing"}, {"client"}, {"flows"}, {"client", "a", "b"}} {
		if err := run(t.Context(), args); !errors.Is(err, errUsage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
