import { PassThrough } from 'node:stream'
import t from 'tap'
import { judgePublish, judgeSubscribe, mayForward } from '../../broker/judge/authorization.ts'
import { compilePolicy } from '../../broker/judge/topic-policy.ts'
import type { Link } from '../../broker/mqtt/mqtt-client.ts'
import { openConnection } from '../../broker/sessions.ts'
import { DEVICE_POLICY } from '../support/broker.ts'

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
