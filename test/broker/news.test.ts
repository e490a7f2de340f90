import { PassThrough } from 'node:stream'
import t from 'tap'
import { type RenewalHint, readHint } from '#shared/renewal-hint'
import { readTrust } from '#shared/trust-bundle'
import { compilePolicy } from '../../broker/judge/topic-policy.ts'
import { News, type NewsMessage } from '../../broker/mqtt/news.ts'
import type { AdmissionRecord } from '../../broker/replica/replica.ts'
import type { TrustRow } from '../../broker/replica/replica-rows.ts'
import { type Connection, openConnection } from '../../broker/sessions.ts'

const POLICY = { publish: [], subscribe: [] }

function connectionOf(device: string, kind: Connection['kind'] = 'device'): Connection {
  const names = { id: device, fingerprint: device, serial: device, device, batch: null, fleet: 'default' }
  const socket = new PassThrough()
  const policy = compilePolicy(POLICY, { id: device, fleet: 'default' })
  return openConnection({ ...names, socket, kind, issuer: 'aa', address: '', openedAt: 0, policy })
}

function recordOf(device: string, renewAfter: number): AdmissionRecord {
  const life = { notBefore: 0, notAfter: 9, supersededFrom: null, revokedAt: null, reason: null }
  const names = { fingerprint: device, serial: device, issuer: 'aa', device }
  return {
    certificate: { ...names, ...life, state: 'active', renewAfter, renewBefore: 8 },
    device: { id: device, kind: 'device', fleet: 'default', batch: null, state: 'active' },
    fleet: { id: 'default', policy: POLICY, policyEpoch: 1 },
    hold: null,
  }
}

function trustRow(version: number): TrustRow {
  return { version, bundle: JSON.stringify({ version, roots: ['R'], links: [] }) }
}

/** Connected devices, turns of the event loop that come when the test says so, and what was published. */
function stage(count: number) {
  const published: NewsMessage[] = []
  const failures: unknown[] = []
  const turns: (() => void)[] = []
  const state = { trust: null as TrustRow | null, renewAfter: 5, isBroken: false }
  const connections = Array.from({ length: count }, (_, number) => connectionOf(`d${number}`))
  const news = new News({
    replica: {
      record(fingerprint) {
        if (state.isBroken) throw new Error('the disk')
        return recordOf(fingerprint, state.renewAfter)
      },
      trust: () => state.trust,
    },
    sessions: { select: () => [...connections] },
    publish: (message) => void published.push(message),
    failed: (error) => void failures.push(error),
    later(work) {
      turns.push(work)
      return () => void turns.splice(turns.indexOf(work), 1)
    },
  })
  const heard = (topic: string) => published.filter((message) => message.topic.endsWith(topic))
  return { news, connections, published, failures, state, turns, heard }
}

t.test('who connects hears its window, and the bundle once there was a rollover', async (t) => {
  const { news, connections, published, state } = stage(1)
  const [connection = connectionOf('')] = connections
  news.tell(connection)
  t.strictSame(
    published.map(({ topic }) => topic),
    ['devices/d0/muster/renewal'],
  )
  state.trust = trustRow(2)
  news.tell(connection)
  news.tell(connection)
  t.equal(published.length, 2, 'the same is not told again')
  t.equal(published[1]?.topic, 'devices/d0/muster/trust')
  t.equal(readTrust(Buffer.from(published[1]?.payload ?? ''))?.version, 2)
  news.tell(connectionOf('d0', 'service'))
  t.equal(published.length, 2, 'a service has no topics of its own')
})

t.test('a new bundle goes to everybody, some in each turn', async (t) => {
  const { news, connections, state, turns, heard } = stage(120)
  state.trust = trustRow(2)
  news.tellAll()
  t.equal(heard('trust').length, 0, 'nothing in the tick of the change')
  const [first, second] = connections
  if (first && second) {
    first.refused = 'held'
    second.socket.destroy()
  }
  const perTurn: number[] = []
  for (let turn = turns.shift(); turn; turn = turns.shift()) {
    const before = heard('trust').length
    turn()
    perTurn.push(heard('trust').length - before)
  }
  t.strictSame(perTurn, [50, 50, 18], 'who is refused or gone hears nothing')
  const payloads = new Set(heard('trust').map(({ payload }) => payload))
  t.equal(payloads.size, 1, 'the retained messages share one buffer')
  t.equal(new Set(heard('trust').map(({ topic }) => topic)).size, 118)
})

t.test('a bundle that changes while the one before is told reaches everybody', async (t) => {
  const { news, state, turns, heard } = stage(80)
  state.trust = trustRow(2)
  news.tellAll()
  turns.shift()?.()
  state.trust = trustRow(3)
  news.tellAll()
  t.equal(turns.length, 1, 'one turn at a time')
  for (let turn = turns.shift(); turn; turn = turns.shift()) turn()
  const newest = new Map(heard('trust').map(({ topic, payload }) => [topic, readTrust(Buffer.from(payload))]))
  t.equal(newest.size, 80)
  t.ok([...newest.values()].every((bundle) => bundle?.version === 3))
  t.equal(heard('trust').length, 50 + 80)
})

t.test('after a snapshot connected devices hear of windows that were moved, and of no others', async (t) => {
  const { news, connections, state, turns, heard } = stage(2)
  for (const connection of connections) news.tell(connection)
  state.renewAfter = 6
  news.tellAll()
  for (let turn = turns.shift(); turn; turn = turns.shift()) turn()
  const hints = heard('renewal').map(({ payload }) => readHint(Buffer.from(payload)) as RenewalHint) // as told
  t.strictSame(
    hints.map(({ renewAfter }) => renewAfter),
    [5, 5, 6, 6],
  )
  news.tellAll()
  for (let turn = turns.shift(); turn; turn = turns.shift()) turn()
  t.equal(heard('renewal').length, 4)
})

t.test('a replica that cannot be read tells nothing, and stops nothing', async (t) => {
  const { news, connections, state, turns, published, failures } = stage(60)
  state.isBroken = true
  news.tellAll()
  for (let turn = turns.shift(); turn; turn = turns.shift()) turn()
  t.equal(published.length, 0)
  t.equal(failures.length, 60)
  state.isBroken = false
  for (const connection of connections) news.tell(connection)
  t.equal(published.length, 60, 'and is told when it can')
})

t.test('a broker that stops tells nobody any more', async (t) => {
  const { news, state, turns, published } = stage(60)
  state.trust = trustRow(2)
  news.tellAll()
  news.stop()
  t.equal(turns.length, 0)
  t.equal(published.length, 0)
})
