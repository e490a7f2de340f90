import type { Test } from 'tap'
import { DAY_MS, device, HOUR_MS, hex } from '../../support/registry-plane.ts'
import { snapshotOf } from '../../support/registry-replica.ts'
import type { Fresh } from '../registry.ts'

const NO_SPREAD = { p50: 0, p95: 0, max: 0 }

export async function brokersContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('an invitation admits one key, as often as that asks', async (t) => {
    const plane = await fresh(t)
    const { registry } = plane
    await registry.invite({ ...plane.act(), id: 'b1', hash: hex('i1'), expiresAt: plane.now() + HOUR_MS })
    const accept = (hash: string, key: string) =>
      registry.acceptInvitation({ hash: hex(hash), spkiHash: hex(key), now: plane.now() })
    await t.rejects(accept('guess', 'k1'), { code: 'token_unknown' })
    t.match(await registry.listBrokers(plane.now()), [
      { id: 'b1', state: 'invited', url: null, position: null },
    ])
    t.equal(await accept('i1', 'k1'), 'b1')
    await t.rejects(accept('i1', 'k2'), { code: 'token_spent' })
    plane.pass(HOUR_MS)
    t.equal(await accept('i1', 'k1'), 'b1', 'a lost reply costs nothing')
    t.match(await registry.listBrokers(plane.now()), [{ id: 'b1', state: 'down' }])
  })

  await t.test('an invitation expires, and with it the broker that was only invited', async (t) => {
    const plane = await fresh(t)
    await plane.registry.invite({
      ...plane.act(),
      id: 'b1',
      hash: hex('i1'),
      expiresAt: plane.now() + HOUR_MS,
    })
    plane.pass(HOUR_MS)
    const late = { hash: hex('i1'), spkiHash: hex('k1'), now: plane.now() }
    await t.rejects(plane.registry.acceptInvitation(late), { code: 'token_expired' })
    t.strictSame(await plane.registry.listBrokers(plane.now()), [])
  })

  await t.test('a broker is up while its stream is open, and says how far it is', async (t) => {
    const plane = await fresh(t)
    const { registry } = plane
    await plane.broker()
    const [view] = await registry.listBrokers(plane.now())
    t.match(view, { state: 'down', behind: null })
    await registry.streamOf('b1', true, plane.now())
    await registry.streamOf('b1', true, plane.now())
    await registry.streamOf('b1', false, plane.now())
    const cursor = await registry.cursor()
    await plane.enroll('d1')
    await plane.report([], { applied: cursor, sessions: 3, url: 'mqtts://b1.example:8883' })
    t.match(await registry.listBrokers(plane.now()), [
      {
        id: 'b1',
        state: 'up',
        url: 'mqtts://b1.example:8883',
        sessions: 3,
        position: cursor.position,
        behind: 2,
        lastHeardAt: plane.now(),
      },
    ])
    await plane.report([], { applied: { epoch: 'another', position: 99 } })
    t.match(
      await registry.listBrokers(plane.now()),
      [{ position: null, behind: null }],
      'of another registry',
    )
    await registry.streamOf('b1', false, plane.now())
    t.match(await registry.listBrokers(plane.now()), [{ state: 'down' }])
  })

  await t.test('a forgotten broker has no way in, until it is invited anew', async (t) => {
    const plane = await fresh(t)
    const { registry } = plane
    await plane.broker()
    const owned = {
      serial: '01',
      issuer: 'infrastructure CA',
      kind: 'broker',
      owner: 'b1',
      notBefore: 0,
      notAfter: plane.now() + DAY_MS,
    } as const
    await registry.recordInfrastructure({ ...owned, fingerprint: hex('c1') }, plane.act())
    t.match(await registry.findInfrastructure(hex('c1')), { ...owned, revokedAt: null })
    const first = await plane.enroll('d1')
    await plane.report([plane.connected(first)])
    await registry.forgetBroker('b1', plane.act())
    t.match(await registry.findInfrastructure(hex('c1')), { revokedAt: plane.now() })
    t.strictSame(await registry.revokedBy('infrastructure CA', 0), [
      { serial: '01', revokedAt: plane.now(), reason: 'cessationOfOperation' },
    ])
    t.strictSame(await registry.revokedBy(plane.issuer.id, 0), [], 'it is on the CRL of its own CA')
    t.match(await registry.showDevice('d1', plane.now()), { online: false })
    t.strictSame(await registry.listBrokers(plane.now()), [])
    const again = { hash: hex('invitation of b1'), spkiHash: hex('key of b1'), now: plane.now() }
    await t.rejects(registry.acceptInvitation(again), { code: 'token_unknown' })
    await t.rejects(registry.forgetBroker('b1', plane.act()), { code: 'not_found' })
    const late = { ...owned, serial: '02', fingerprint: hex('c2') }
    await t.rejects(registry.recordInfrastructure(late, plane.act()), { code: 'not_found' })
    t.equal(await registry.findInfrastructure(hex('c2')), null, 'what was being signed goes nowhere')
    await plane.broker()
    t.match(await registry.listBrokers(plane.now()), [{ id: 'b1', state: 'down', sessions: 0, url: null }])
    t.match(
      await registry.findInfrastructure(hex('c1')),
      { revokedAt: plane.now() },
      'its old certificate stays out',
    )
  })

  await t.test(
    'a receipt has a line for each broker that was there, and the first report fills it',
    async (t) => {
      const plane = await fresh(t)
      const { registry } = plane
      for (const id of ['b1', 'b2', 'b3']) await plane.broker(id)
      await registry.streamOf('b2', true, plane.now())
      await plane.enroll('d1')
      await plane.propose('p1', device('d1'))
      t.equal((await registry.showPlan('p1', plane.now())).receipt, null, 'none before it is applied')
      await registry.applyPlan('p1', 1, plane.act())
      await plane.broker('late')
      const closeMs = { p50: 2, p95: 3, max: 9 }
      const applied = plane.applied('p1', { position: 8, sessionsClosed: 4, closeMs, survivors: ['d9'] })
      await plane.report([applied], { broker: 'b1' })
      await plane.report([plane.applied('p1')], { broker: 'b1' })
      await plane.report([plane.applied('p1')], { broker: 'late' })
      const last = { survivors: [], purging: false }
      const waiting = { position: null, sessionsClosed: 0, closeMs: NO_SPREAD, ...last }
      t.strictSame(await registry.receipt('p1'), {
        id: 'p1',
        sessionsClosed: 4,
        closeMs,
        brokers: [
          {
            ...{ broker: 'b1', state: 'applied', position: 8, sessionsClosed: 4, closeMs, ...last },
            survivors: ['d9'],
          },
          { broker: 'b2', state: 'pending', ...waiting },
          { broker: 'b3', state: 'down', ...waiting },
        ],
        survivors: ['d9'],
      })
      const slow = plane.applied('p1', { sessionsClosed: 1, closeMs: { p50: 1, p95: 40, max: 41 } })
      await plane.report([slow], { broker: 'b2' })
      await registry.forgetBroker('b3', plane.act())
      await registry.forgetBroker('b1', plane.act())
      const receipt = await registry.receipt('p1')
      t.match(
        receipt,
        { sessionsClosed: 5, closeMs: { p50: 2, p95: 40, max: 41 } },
        'of each figure the worst',
      )
      t.strictSame(
        receipt.brokers.map(({ broker }) => broker),
        ['b1', 'b2'],
        'it no longer waits for a forgotten broker, and keeps what one has done',
      )
      t.strictSame((await registry.showPlan('p1', plane.now())).receipt, receipt)
      await t.rejects(registry.receipt('none'), { code: 'not_found' })
    },
  )

  await t.test('certificates of the plane are found by their fingerprint', async (t) => {
    const plane = await fresh(t)
    const certificate = {
      fingerprint: hex('o1'),
      serial: '0a',
      issuer: null,
      kind: 'operator',
      owner: 'alice',
      notBefore: 1,
      notAfter: 2,
    } as const
    await plane.registry.recordInfrastructure(certificate, plane.act())
    t.strictSame(await plane.registry.findInfrastructure(hex('o1')), { ...certificate, revokedAt: null })
    t.equal(await plane.registry.findInfrastructure(hex('none')), null)
  })

  await t.test('an API token works until it is cancelled or has expired', async (t) => {
    const plane = await fresh(t)
    const { registry } = plane
    const make = (name: string, hash: string, expiresAt: number | null = null) =>
      registry.createApiToken({ ...plane.act(), name, hash: hex(hash), expiresAt })
    t.match(await make('ci', 'h1', plane.now() + DAY_MS), { name: 'ci', cancelledAt: null })
    await t.rejects(make('ci', 'h2'), { code: 'conflict' })
    const find = (hash: string) => registry.findApiToken(hex(hash), plane.now())
    t.strictSame([await find('h1'), await find('guess')], ['ci', null])
    plane.pass(DAY_MS)
    t.equal(await find('h1'), null)
    await registry.cancelApiToken('ci', plane.act())
    await t.rejects(registry.cancelApiToken('ci', plane.act()), { code: 'not_found' })
    await make('ci', 'h2')
    t.equal(await find('h2'), 'ci')
    await registry.cancelApiToken('ci', plane.act())
    t.equal(await find('h2'), null)
    t.match(await registry.listApiTokens(), [
      { name: 'ci', cancelledAt: plane.now() },
      { name: 'ci', cancelledAt: plane.now() },
    ])
  })

  await t.test('an issuer is told when it is recorded, changes, or is no longer trusted', async (t) => {
    const plane = await fresh(t)
    const issuer = { id: plane.issuer.id, pem: 'PEM', trusted: true }
    const { position } = await plane.registry.cursor()
    await plane.registry.recordIssuer(issuer, plane.act())
    await plane.registry.recordIssuer(issuer, plane.act())
    await plane.registry.recordIssuer({ ...issuer, trusted: false }, plane.act())
    const changes = (await plane.registry.changesAfter(position, 10)).map(({ change }) => change)
    t.strictSame(changes, [
      { kind: 'issuer', issuer },
      { kind: 'issuer', issuer: { ...issuer, trusted: false } },
    ])
  })

  await t.test('what devices are to trust is told when it changes, and in a snapshot', async (t) => {
    const { registry, act, now } = await fresh(t)
    const { position } = await registry.cursor()
    const trust = { version: 2, roots: ['R1', 'R2'], links: ['L'] }
    const next = { version: 3, roots: ['R2'], links: [] }
    for (const bundle of [trust, trust, next, next]) await registry.recordTrust(bundle, act())
    const changes = (await registry.changesAfter(position, 10)).map(({ change }) => change)
    t.strictSame(changes, [
      { kind: 'trust', trust },
      { kind: 'trust', trust: next },
    ])
    t.strictSame((await snapshotOf(registry, now())).trust, next)
    const actions = (await registry.listAudit(0, 100)).map(({ action }) => action)
    t.equal(actions.filter((action) => action === 'trust.publish').length, 2)
  })
}
