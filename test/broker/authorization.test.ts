import { PassThrough } from 'node:stream'
import t from 'tap'
import { judgePublish, judgeSubscribe, mayFire, mayForward } from '../../broker/judge/authorization.ts'
import { compilePolicy } from '../../broker/judge/topic-policy.ts'
import type { Link, Will } from '../../broker/mqtt/mqtt-client.ts'
import { openConnection } from '../../broker/sessions.ts'
import { admissionRecord, DEVICE_POLICY, FakeReplica } from '../support/broker.ts'
import type { TestIdentity } from '../support/pki.ts'

function link(): Link {
  const connection = openConnection({
    id: 'c1',
    socket: new PassThrough(),
    fingerprint: 'f1',
    serial: '01',
    device: 'A',
    kind: 'device',
    batch: null,
    fleet: 'default',
    issuer: 'ca',
    address: '127.0.0.1',
    openedAt: 0,
    policy: compilePolicy(DEVICE_POLICY, { id: 'A', fleet: 'default' }),
  })
  return {
    connection,
    clientId: 'A',
    will: null,
    filters: new Set(),
    isAccepted: true,
    isThrottled: false,
    refusals: 0,
  }
}

t.test('a refused connection may do nothing, whatever its policy says', async (t) => {
  const open = link()
  t.equal(judgePublish(open, { topic: 'devices/A/x' }), null)
  t.equal(judgeSubscribe(open, { topic: 'devices/A/#', qos: 0, isKept: false }), null)
  t.equal(mayForward(open, 'devices/A/x'), true)
  open.connection.refused = 'held'
  t.match(judgePublish(open, { topic: 'devices/A/x' }), { code: 'held' })
  t.match(judgeSubscribe(open, { topic: 'devices/A/#', qos: 0, isKept: false }), { code: 'held' })
  t.equal(mayForward(open, 'devices/A/x'), false)
})

t.test('a filter that was not granted does not count', async (t) => {
  const one = link()
  for (let n = 0; n < 200; n++)
    t.match(judgeSubscribe(one, { topic: `devices/B/${n}`, qos: 0, isKept: false }), { code: 'policy_sub' })
  t.equal(one.filters.size, 0)
  t.equal(judgeSubscribe(one, { topic: 'devices/A/#', qos: 0, isKept: false }), null)
})

t.test('a will that was ordered to be forgotten is not published while the disk keeps it', async (t) => {
  const replica = new FakeReplica()
  const identity = {
    id: 'A',
    kind: 'device',
    fingerprint: 'f1',
    serial: '01',
    issuer: 'ca',
    notBefore: 0,
  } as const
  replica.put(admissionRecord({ ...identity, notAfter: Date.now() + 60_000 } as TestIdentity))
  const will = {
    topic: 'devices/A/gone',
    payload: 'x',
    qos: 0,
    retain: false,
    clientId: 'A',
    fingerprint: 'f1',
  }
  const deps = { replica, now: Date.now, maxStalenessMs: 1_000 }
  const fires = (isOwed?: (clientId: string, identity: string) => boolean) =>
    mayFire(isOwed === undefined ? deps : { ...deps, isOwed }, will as unknown as Will) // as much of one as is looked at
  t.equal(fires(), true)
  t.equal(
    fires((clientId, device) => clientId === 'A' && device === 'A'),
    false,
  )
  t.equal(
    fires(() => false),
    true,
  )
})
