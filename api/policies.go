package api

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"github.com/caprockdb/caprock/pkg/kv"
)

const policyMethods = "GET, HEAD, PUT, DELETE"

// policy serves /admin/policies/{prefix}.
func (x *exchange) policy(rest string, encoded bool) {
	if !allows(policyMethods, x.r.Method) {
		x.methodNotAllowed(policyMethods)
		return
	}
	prefix, err := x.parseKey(rest, encoded)
	if err != nil {
		x.fail(err)
		return
	}
	if _, err := queryValues(x.r.URL.RawQuery); err != nil {
		x.fail(err)
		return
	}
	switch x.r.Method {
	case http.MethodPut:
		x.putPolicy(prefix)
	case http.MethodDelete:
		x.deletePolicy(prefix)
	default:
		x.getPolicy(prefix)
	}
}

func (x *exchange) getPolicy(prefix []byte) {
	ctx, cancel := x.deadline(0)
	defer cancel()
	p, found, err := x.h.deps.Backend.Policies().Get(ctx, prefix)
	switch {
	case err != nil:
		x.fail(classify(kv.OpGet, err))
	case !found:
		x.fail(kv.Errorf(codePolicyNotFound, "the prefix has no policy of its own"))
	default:
		x.body = append(appendPolicy(x.body[:0], &p, x.switchesOf(ctx, prefix)), '\n')
		x.send(http.StatusOK, contentJSON)
	}
}

func (x *exchange) listPolicies() {
	if _, err := queryValues(x.r.URL.RawQuery); err != nil {
		x.fail(err)
		return
	}
	ctx, cancel := x.deadline(0)
	defer cancel()
	policies, err := x.h.deps.Backend.Policies().List(ctx)
	if err != nil {
		x.fail(classify(kv.OpGet, err))
		return
	}
	dst := append(x.body[:0], `{"policies":[`...)
	shown := make([][]kv.LaneSwitch, len(policies))
	for i := range policies {
		if i > 0 {
			dst = append(dst, ',')
		}
		shown[i] = x.switchesOf(ctx, policies[i].Prefix)
		dst = appendPolicy(dst, &policies[i], shown[i])
	}
	dst = append(dst, ']')
	if left := orphans(x.switchesOf(ctx, nil), shown); len(left) > 0 {
		dst = appendSwitches(dst, left)
	}
	x.body = append(dst, "}\n"...)
	x.send(http.StatusOK, contentJSON)
}

func (x *exchange) putPolicy(prefix []byte) {
	body, failure := readBody(x.r, adminBodyBytesMax)
	if failure != nil {
		x.fail(failure)
		return
	}
	p, failure := decodePolicy(prefix, body)
	if failure != nil {
		x.fail(failure)
		return
	}
	ctx, cancel := x.deadline(0)
	defer cancel()
	stored, err := x.h.deps.Backend.Policies().Put(ctx, p)
	if err != nil {
		x.fail(classify(kv.OpPut, err))
		return
	}
	x.body = append(appendPolicy(x.body[:0], &stored, x.switchesOf(ctx, prefix)), '\n')
	x.send(http.StatusOK, contentJSON)
}

// deletePolicy removes a policy. As with keys, removing what is not there succeeds and says so.
func (x *exchange) deletePolicy(prefix []byte) {
	ctx, cancel := x.deadline(0)
	defer cancel()
	store := x.h.deps.Backend.Policies()
	_, found, err := store.Get(ctx, prefix)
	if err == nil {
		err = store.Delete(ctx, prefix)
	}
	if err != nil {
		x.fail(classify(kv.OpDelete, err))
		return
	}
	dst := appendBytes(append(x.body[:0], '{'), "prefix", "prefix_encoding", prefix)
	dst = append(dst, `,"found":`...)
	dst = appendBool(dst, found)
	x.body = append(dst, "}\n"...)
	x.send(http.StatusOK, contentJSON)
}

// policyFields are the documented fields of a policy.
func policyFields() []string {
	return []string{"default", "lanes", "n", "r", "w", "resolver", "expr", "ttl", "durability", "read_repair"}
}

// decodePolicy reads the body of a policy's PUT. A field that is null is as good as left out.
func decodePolicy(prefix, body []byte) (kv.Policy, *kv.Error) {
	p := kv.Policy{Prefix: prefix}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return p, kv.Errorf(kv.CodeBadRequest, "a policy is a JSON object: %v", err)
	}
	known := policyFields()
	for _, name := range sortedNames(fields) {
		if !slices.Contains(known, name) {
			return p, kv.Errorf(kv.CodeBadRequest, "unknown field %q; did you mean %q?", cutText(name), kv.Nearest(name, known))
		}
		if string(fields[name]) == "null" {
			continue
		}
		if err := decodePolicyField(&p, name, fields[name]); err != nil {
			return p, err
		}
	}
	if err := p.Validate(); err != nil {
		return p, kv.AsError(err)
	}
	return p, nil
}

func sortedNames(fields map[string]json.RawMessage) []string {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names) // so that the first mistake reported does not depend on map order
	return names
}

func decodePolicyField(p *kv.Policy, name string, raw json.RawMessage) *kv.Error {
	switch name {
	case "n":
		return decodePolicyCount(name, raw, &p.N)
	case "r":
		return decodePolicyCount(name, raw, &p.R)
	case "w":
		return decodePolicyCount(name, raw, &p.W)
	}
	var value string
	if err := json.Unmarshal(raw, &value); err != nil {
		return kv.Errorf(kv.CodeBadRequest, "field %q is not a string", name)
	}
	switch name {
	case "default":
		level, err := kv.ParseLevel(value)
		if err != nil {
			return kv.AsError(err)
		}
		p.Default = level
		return nil
	case "resolver":
		p.Resolver = value
		return nil
	case "expr":
		p.Expr = value
		return nil
	case "lanes":
		p.Lanes = value
		return onlySupported(name, value, kv.AllLanes())
	case "durability":
		p.Durability = value
		return onlySupported(name, value, []string{kv.DurabilitySync, kv.DurabilityAsync})
	case "read_repair":
		p.ReadRepair = value
		return onlySupported(name, value, []string{kv.RepairBackground, kv.RepairBlocking, kv.RepairOff})
	default: // ttl
		var err *kv.Error
		p.TTL, err = parseTTL(value)
		return err
	}
}

func decodePolicyCount(name string, raw json.RawMessage, into *int) *kv.Error {
	var number json.Number
	if err := json.Unmarshal(raw, &number); err != nil || raw[0] == '"' {
		return kv.Errorf(kv.CodeBadRequest, "field %q is not a number", name)
	}
	return parseCount(name, number.String(), into)
}

// onlySupported refuses a value that is none of a field's.
func onlySupported(name, value string, supported []string) *kv.Error {
	switch {
	case slices.Contains(supported, value):
		return nil
	default:
		return kv.Errorf(kv.CodeBadRequest, "unknown %s %q; it is one of %q", name, cutText(value), supported)
	}
}

// appendPolicy appends the whole policy; what it leaves to the cluster is null.
func appendPolicy(dst []byte, p *kv.Policy, switches []kv.LaneSwitch) []byte {
	dst = appendBytes(append(dst, '{'), "prefix", "prefix_encoding", p.Prefix)
	dst = append(dst, `,"default":`...)
	if p.Default == kv.LevelUnset {
		dst = append(dst, "null"...)
	} else {
		dst = appendText(dst, p.Default.String())
	}
	dst = append(dst, `,"lanes":`...)
	dst = appendText(dst, cmp.Or(p.Lanes, kv.LanesMixed))
	for _, count := range []struct {
		member string
		value  int
	}{{`,"n":`, p.N}, {`,"r":`, p.R}, {`,"w":`, p.W}} {
		dst = append(dst, count.member...)
		if count.value == 0 {
			dst = append(dst, "null"...)
		} else {
			dst = strconv.AppendInt(dst, int64(count.value), 10)
		}
	}
	dst = append(dst, `,"resolver":`...)
	dst = appendText(dst, cmp.Or(p.Resolver, kv.ResolverLWW))
	dst = append(dst, `,"expr":`...)
	if p.Expr == "" {
		dst = append(dst, "null"...)
	} else {
		dst = appendText(dst, p.Expr)
	}
	dst = append(dst, `,"ttl":`...)
	if p.TTL == 0 {
		dst = append(dst, "null"...)
	} else {
		dst = appendText(dst, p.TTL.String())
	}
	dst = append(dst, `,"durability":`...)
	dst = appendText(dst, cmp.Or(p.Durability, kv.DurabilitySync))
	dst = append(dst, `,"read_repair":`...)
	dst = appendText(dst, cmp.Or(p.ReadRepair, kv.RepairBackground))
	return appendPolicyState(dst, switches)
}
