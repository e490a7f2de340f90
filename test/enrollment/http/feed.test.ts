import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { request } from 'node:https'
import { createInterface } from 'node:readline'
import { type Readable, Writable } from 'node:stream'
import t from 'tap'
import type { Change, FeedMessage, Report } from '#shared/feed'
import { openLog } from '#shared/log'
import { Bell } from '../../../enrollment/bell.ts'
import { BrokerFaults } from '../../../enrollment/broker-faults.ts'
import { FEED_ROUTES } from '../../../enrollment/http/feed.ts'
import type { Call } from '../../../enrollment/http/routes.ts'
import {
  enrollBroker,
  enrollDevice,
  newRequest,
  type Pair,
  type RunningEnrollment,
  startEnrollment,
} from '../../support/enrollment.ts'

interface Follower {
  /** Messages up to and with the first for which the condition holds. */
  until(isLast: (message: FeedMessage) => boolean): Promise<FeedMessage[]>
  readonly reply: IncomingMessage
  close(): void
}

async function follow(service: RunningEnrollment, broker: Pair, query = ''): Promise<Follower> {
  const client = service.adminClient(broker)
  const reply = await client.stream(`/v1/feed${query}`)
  const lines = createInterface({ input: reply })[Symbol.asyncIterator]()
  return {
    reply,
    async until(isLast) {
      const messages: FeedMessage[] = []
      for (;;) {
        const { value, done } = await lines.next()
        if (done) throw new Error(`the stream ended after ${JSON.stringify(messages.at(-1))}`)
        messages.push(JSON.parse(value))
        if (messages.some(isLast)) return messages
      }
    },
    close: () => client.close(),
  }
}

const isAlive = ({ type }: FeedMessage) => type === 'alive'
const isChangeOf = (kind: Change['kind']) => (message: FeedMessage) =>
  message.type === 'change' && message.change.kind === kind

function positionOf(message: FeedMessage | undefined): number {
  if (!message) throw new Error('no message')
  return message.position
}

async function report(
  service: RunningEnrollment,
  broker: Pair,
  batch: { sequence: number; reports: Report[] },
) {
  const { epoch, position } = await service.deps.registry.cursor()
  const client = service.adminClient(broker)
  const reply = await client.send('POST', '/v1/feed/reports', {
    json: {
      boot: 'boot-1',
      at: Date.now(),
      applied: { epoch, position },
      sessions: 0,
      url: 'mqtts://localhost:8883',
      ...batch,
    },
  })
  client.close()
  return { status: reply.status, body: JSON.parse(reply.text) }
}

t.test('the change stream', async (t) => {
  const service = await startEnrollment(t)
  const broker = await enrollBroker(service, 'edge-1')
  await enrollDevice(service, { id: 'saw-1' })
  const { epoch, position } = await service.deps.registry.cursor()

  t.test('a broker without a cursor gets the whole state, then that it is alive', async (t) => {
    const follower = await follow(service, broker)
    t.equal(follower.reply.headers['content-type'], 'application/x-ndjson')
    const messages = await follower.until(isAlive)
    t.match(messages[0], { type: 'snapshot', epoch })
    t.match(messages.at(-2), { type: 'snapshot-end', epoch })
    t.match(messages.at(-1), { type: 'alive', epoch, position })
    const kinds = messages.flatMap((message) => (message.type === 'change' ? [message.change.kind] : []))
    t.same(new Set(kinds), new Set(['issuer', 'fleet', 'device', 'certificate']))
    follower.close()
  })

  t.test('one that resumes gets only what it has missed', async (t) => {
    await enrollDevice(service, { id: 'saw-2' })
    const follower = await follow(service, broker, `?epoch=${epoch}&position=${position}`)
    const messages = await follower.until(isAlive)
    t.ok(messages.slice(0, -1).every((message) => message.type === 'change' && message.position > position))
    t.ok(JSON.stringify(messages).includes('saw-2') && !JSON.stringify(messages).includes('saw-1'))
    follower.close()
  })

  t.test('another epoch, or a position ahead of the log, is answered with a snapshot', async (t) => {
    for (const query of [
      `?epoch=other&position=${position}`,
      `?epoch=${epoch}&position=999999`,
      '?epoch=x',
    ]) {
      const follower = await follow(service, broker, query)
      t.match((await follower.until(() => true))[0], { type: 'snapshot', epoch }, query)
      follower.close()
    }
  })

  t.test('a change is pushed when it is committed, to everyone who follows', async (t) => {
    const now = await service.deps.registry.cursor()
    const query = `?epoch=${now.epoch}&position=${now.position}`
    const followers = [await follow(service, broker, query), await follow(service, broker, query)]
    for (const follower of followers) await follower.until(isAlive)
    const plan = await service.admin.proposePlan({ action: 'hold', scope: { kind: 'device', id: 'saw-1' } })
    const asked = performance.now()
    await service.admin.applyPlan(plan.id, 1)
    for (const follower of followers) {
      const messages = await follower.until(isChangeOf('hold'))
      t.match(messages.at(-1), { change: { hold: { id: plan.id, state: 'active' } } })
      follower.close()
    }
    t.ok(performance.now() - asked < 4_000, 'not with the next alive')
    await service.admin.undoPlan(plan.id)
  })

  t.test('a cursor that is no cursor is refused', async (t) => {
    const faults = ['?fault=%1b%5b2J', '?fault=', `?fault=${'x'.repeat(201)}`]
    for (const query of ['?position=-1&epoch=x', '?position=x&epoch=x', '?position=1.5&epoch=x', ...faults]) {
      const reply = await service.adminClient(broker).send('GET', `/v1/feed${query}`)
      t.match(reply, { status: 400, text: /invalid_request/ }, query)
    }
  })

  t.test('a broker is up while it follows, and down afterwards', async (t) => {
    const state = async () => (await service.admin.listBrokers()).find(({ id }) => id === 'edge-1')?.state
    const follower = await follow(service, broker)
    await follower.until(isAlive)
    t.equal(await state(), 'up')
    follower.close()
    const deadline = AbortSignal.timeout(10_000)
    while ((await state()) !== 'down') {
      deadline.throwIfAborted()
      await new Promise(setImmediate)
    }
    t.pass('its stream was seen to end')
  })
})

t.test('a receipt says how far every broker is', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const one = await enrollBroker(service, 'edge-1')
  const two = await enrollBroker(service, 'edge-2')
  await enrollDevice(service, { id: 'lathe-1' })
  const follower = await follow(service, one)
  await follower.until(isAlive)
  const plan = await admin.proposePlan({ action: 'hold', scope: { kind: 'batch', id: 'lab' } })
  await admin.applyPlan(plan.id, 1)
  const applied = (sessionsClosed: number): Report => ({
    type: 'applied',
    at: Date.now(),
    hold: plan.id,
    position: positionOf(message),
    sessionsClosed,
    closeMs: { p50: 3, p95: 5, max: 5 },
    survivors: [],
  })
  const message = (await follower.until(isChangeOf('hold'))).at(-1)

  const states = async () => {
    const { brokers } = await admin.receipt(plan.id, 0)
    return Object.fromEntries(brokers.map(({ broker, state }) => [broker, state]))
  }
  t.same(await states(), { 'edge-1': 'pending', 'edge-2': 'down' })

  const waiting = admin.receipt(plan.id, 30_000)
  t.match(await report(service, one, { sequence: 1, reports: [applied(7)] }), {
    status: 200,
    body: { sequence: 1 },
  })
  t.same(await states(), { 'edge-1': 'applied', 'edge-2': 'down' })
  t.match(await report(service, one, { sequence: 1, reports: [applied(7)] }), { status: 200 }, 'taken once')
  await report(service, two, { sequence: 1, reports: [applied(2)] })
  t.match(
    await waiting,
    { sessionsClosed: 9, survivors: [] },
    'the long poll answers when the last one has applied',
  )

  const reply = await service.adminClient(one).send('POST', '/v1/feed/reports', { json: { boot: 'x' } })
  t.match(reply, { status: 400 }, 'a batch of another form is refused')
  follower.close()
})

t.test('a receipt no longer waits for a broker that was forgotten, and its stream ends', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const broker = await enrollBroker(service, 'edge-1')
  await enrollDevice(service, { id: 'lathe-2' })
  const follower = await follow(service, broker)
  await follower.until(isAlive)
  const plan = await admin.proposePlan({ action: 'hold', scope: { kind: 'device', id: 'lathe-2' } })
  await admin.applyPlan(plan.id, 1)
  const waiting = admin.receipt(plan.id, 30_000)
  await admin.forgetBroker('edge-1')
  t.match(await waiting, { brokers: [] })
  await t.rejects(
    follower.until(() => false),
    /the stream ended/,
  )
  t.equal((await service.adminClient(broker).send('GET', '/v1/feed')).status, 403)
})

/** The stream of a broker that is always behind: there are more changes whenever it asks. */
async function endlessFeed(infrastructure: { revokedAt: number | null }) {
  const seen = { reads: 0, ended: Promise.withResolvers<boolean>() }
  const change = { kind: 'forgotten', device: 'x'.repeat(60) } as const
  const registry = {
    oldestPosition: async () => 0,
    cursor: async () => ({ epoch: 'e', position: 1_000_000 }),
    changesAfter: async (position: number, limit: number) => {
      seen.reads += 1
      return Array.from({ length: limit }, (_, n) => ({ position: position + n + 1, at: 0, change }))
    },
    streamOf: async (_broker: string, isOpen: boolean) => void (isOpen || seen.ended.resolve(true)),
    findInfrastructure: async () => Object.assign(infrastructure, { notAfter: Number.POSITIVE_INFINITY }),
  }
  const { signal } = new AbortController()
  const log = openLog('test', 'silent')
  const deps = { registry, changed: new Bell(), now: Date.now, log, brokerFaults: new BrokerFaults(log) }
  const caller = { kind: 'broker', id: 'edge-1', fingerprint: 'f' }
  const query = { epoch: 'e', position: '0' }
  const call = { deps, caller, query, signal: () => signal } as unknown as Call // only what the route uses
  const feed = FEED_ROUTES.find(({ path }) => path === '/v1/feed')
  return { seen, stream: (await feed?.run(call)) as Readable } // what the route answers with
}

t.test('a reader that does not read is not read for', async (t) => {
  const { seen, stream } = await endlessFeed({ revokedAt: null })
  const stuck = new Writable({ write: () => {} })
  stream.pipe(stuck)
  for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate)
  t.ok(seen.reads > 0 && seen.reads < 5, `${seen.reads} slices were read while none was taken`)
  stream.destroy()
  t.ok(await seen.ended.promise, 'and its end is told')
})

t.test(
  'a broker that is forgotten while it is behind gets no more, even when it is invited anew',
  async (t) => {
    const infrastructure: { revokedAt: number | null } = { revokedAt: null }
    const { stream } = await endlessFeed(infrastructure)
    let slices = 0
    for await (const _ of stream) {
      slices += 1
      if (slices === 3) infrastructure.revokedAt = 1
      if (slices > 10) break
    }
    t.ok(slices >= 3 && slices <= 5, `${slices} slices`)
  },
)

t.test('a stream ends with the certificate that opened it', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock })
  const follower = await follow(service, await enrollBroker(service, 'edge-1'))
  await follower.until(isAlive)
  clock.offsetMs = 31 * 86_400_000
  service.deps.changed.ring()
  await t.rejects(
    follower.until(() => false),
    /the stream ended/,
  )
})

t.test('a broker enrolls by invitation, once per invitation, and renews itself', async (t) => {
  const service = await startEnrollment(t)
  const invitation = await service.admin.inviteBroker({ id: 'edge-9' })
  t.equal(invitation.url, service.whereabouts.admin)
  const client = service.adminClient()
  const enroll = async (hosts: string[], csr: string) =>
    client.send('POST', '/v1/brokers/enroll', { json: { token: invitation.token, csr, hosts } })
  const { csr, key } = await newRequest()
  t.match(await enroll(['not a host'], csr), { status: 400, text: /neither a DNS name nor an IP/ })
  const first = await enroll(['broker.example', '::1'], csr)
  t.equal(first.status, 200, first.text)
  t.equal((await enroll(['broker.example'], csr)).status, 200, 'the same key again')
  t.match(await enroll(['broker.example'], (await newRequest()).csr), { status: 401, text: /R-TOKEN-SPENT/ })
  const { certificate, broker } = JSON.parse(first.text)
  t.equal(broker, 'edge-9')
  const own = service.adminClient({ certificate, key })
  const renewed = await own.send('POST', '/v1/brokers/renew', { json: { csr, hosts: ['localhost'] } })
  t.match(renewed, { status: 200, text: /edge-9/ })
  await service.admin.forgetBroker('edge-9')
  t.match(await own.send('POST', '/v1/brokers/renew', { json: { csr, hosts: ['localhost'] } }), {
    status: 403,
  })
})

t.test('a broker that is forgotten while it asks for a renewal gets none', async (t) => {
  const service = await startEnrollment(t)
  const { certificate: cert, key } = await enrollBroker(service, 'edge-7')
  const body = JSON.stringify({ csr: (await newRequest()).csr, hosts: ['localhost'] })
  const asking = request(new URL('/v1/brokers/renew', service.whereabouts.admin), {
    method: 'POST',
    agent: false,
    signal: AbortSignal.timeout(10_000),
    headers: { 'content-type': 'application/json', expect: '100-continue' },
    ...{ ca: service.root, cert, key },
  })
  asking.flushHeaders()
  await once(asking, 'continue') // it knows who asks, and waits for the body
  await service.admin.forgetBroker('edge-7')
  asking.end(body)
  const [reply] = await once(asking, 'response')
  reply.resume()
  t.equal(reply.statusCode, 404)
})
