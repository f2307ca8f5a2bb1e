// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"sync"

	"github.com/go-logr/logr"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

const lastPodsFile = "last-pods.json"

// podMemory keeps on disk who this node's pods were, by UID. A pod whose sandbox is made anew while the API server is
// away, under an agent that has started meanwhile, is then still who it was.
type podMemory struct {
	stateDir, bootID string
	log              logr.Logger

	mu    sync.Mutex
	known map[string]endpoint.Who
}

// lastPods is the file.
type lastPods struct {
	BootID string                  `json:"bootID"`
	Pods   map[string]endpoint.Who `json:"pods"`
}

// takeUp reads what the agent before this one has kept in a file, and takes away what it has left unfinished. False where
// there is nothing to be had.
func takeUp(path string, into any, log logr.Logger) bool {
	err := cni.TakeUpFileOfThisBoot(path, into)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Info("what the last agent kept is left out", "file", path, "reason", err.Error())
	}
	return err == nil
}

// load reads, once, what was kept in this boot; a file that is missing or damaged is an empty memory.
func (m *podMemory) load() map[string]endpoint.Who {
	var last lastPods
	if !takeUp(filepath.Join(m.stateDir, lastPodsFile), &last, m.log) || last.BootID != m.bootID {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = last.Pods
	return last.Pods
}

func (m *podMemory) recall(uid string, otherwise endpoint.Who) endpoint.Who {
	m.mu.Lock()
	defer m.mu.Unlock()
	if who, ok := m.known[uid]; ok && uid != "" {
		return who
	}
	return otherwise
}

// keep replaces the whole memory.
func (m *podMemory) keep(known map[string]endpoint.Who) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if reflect.DeepEqual(m.known, known) {
		return nil
	}
	data, err := json.Marshal(lastPods{BootID: m.bootID, Pods: known})
	if err != nil {
		return fmt.Errorf("last pods: %w", err)
	}
	if err := cni.WriteFileOfThisBoot(filepath.Join(m.stateDir, lastPodsFile), data, 0o600); err != nil {
		return fmt.Errorf("last pods: %w", err)
	}
	m.known = known
	return nil
}
