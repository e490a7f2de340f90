import type { Test } from 'tap'
import type { NewRollover } from '../../../enrollment/registry/registry.ts'
import { DAY_MS, deviceId, HOUR_MS, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

const FIRST = { root: hex('root'), device: hex('device CA'), infrastructure: hex('infrastructure CA') }
const SECOND = { ...FIRST, device: hex('device CA 2') }
const THIRD = { root: hex('root 3'), device: hex('device CA 3'), infrastructure: hex('infrastructure CA 3') }

type Plane = Awaited<ReturnType<Fresh>>

function issuing(plane: Plane, id = 'first', from = FIRST, to = SECOND): NewRollover {
  const certificates = [{ id: to.device, role: 'device', pem: `PEM of ${to.device}` }] as const
  return { ...plane.act(), id, kind: 'issuing', from, to, certificates }
}

function ofRoot(plane: Plane): NewRollover {
  const link = hex('link')
  const certificates = [
    { id: THIRD.root, role: 'root', pem: 'root' },
    { id: THIRD.device, role: 'device', pem: 'device' },
    { id: THIRD.infrastructure, role: 'infrastructure', pem: 'infrastructure' },
    { id: link, role: 'new-with-old', pem: 'link' },
    { id: hex('back'), role: 'old-with-new', pem: 'back' },
  ] as const
  return { ...plane.act(), id: 'root', kind: 'root', from: FIRST, to: THIRD, certificates }
}

async function trusted(plane: Plane, position: number): Promise<string[]> {
  const changes = await plane.registry.changesAfter(position, 100)
  return changes.flatMap(({ change }) =>
    change.kind === 'issuer' ? [`${change.issuer.trusted ? '+' : '-'}${change.issuer.id}`] : [],
  )
}

const trustFirst = (plane: Plane) =>
  plane.registry.recordIssuer({ id: FIRST.device, pem: 'PEM', trusted: true }, plane.act())

export async function rolloversContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a rollover is published, cut over and finished, one step after the other', async (t) => {
    const plane = await fresh(t)
    const { registry, act } = plane
    await trustFirst(plane)
    let { position } = await registry.cursor()
    t.match(await registry.startRollover(issuing(plane)), {
      state: 'published',
      publishedVersion: 2,
      version: 2,
    })
    t.same(await trusted(plane, position), [`+${SECOND.device}`], 'brokers trust the new CA before it signs')
    await t.rejects(registry.startRollover(issuing(plane, 'other')), { code: 'conflict' })
    await t.rejects(registry.finishRollover('first', act()), { code: 'conflict' }, 'the old CA still signs')
    await t.rejects(registry.cutOverRollover('none', { devices: 1, adopted: 1 }, act()), {
      code: 'not_found',
    })
    t.match(await registry.cutOverRollover('first', { devices: 1, adopted: 1 }, act()), { state: 'cut-over' })
    await t.rejects(registry.cutOverRollover('first', { devices: 1, adopted: 1 }, act()), {
      code: 'conflict',
    })
    ;({ position } = await registry.cursor())
    t.match(await registry.finishRollover('first', act()), {
      state: 'finished',
      version: 3,
      endedAt: plane.now(),
    })
    t.same(await trusted(plane, position), [`-${FIRST.device}`])
    await t.rejects(registry.abortRollover('first', act()), { code: 'conflict' })
    await t.rejects(
      registry.startRollover(issuing(plane, 'late')),
      { code: 'conflict' },
      'from what signs no more',
    )
    t.match(await registry.startRollover(issuing(plane, 'next', SECOND, { ...FIRST, device: hex('4') })), {
      version: 4,
    })
    t.equal(await registry.verifyAudit(), null)
    const actions = (await registry.listAudit(0, 100)).map(({ action }) => action)
    t.match(
      actions.filter((action) => action.startsWith('rollover')),
      ['rollover.start', 'rollover.cut-over', 'rollover.finish', 'rollover.start'],
    )
  })

  await t.test('a rollover that is aborted before it signed is over at once', async (t) => {
    const plane = await fresh(t)
    const { registry, act } = plane
    await trustFirst(plane)
    await registry.startRollover(ofRoot(plane))
    const { position } = await registry.cursor()
    t.match(await registry.abortRollover('root', act()), {
      state: 'aborted',
      version: 3,
      endedAt: plane.now(),
    })
    t.strictSame(
      new Set(await trusted(plane, position)),
      new Set([THIRD.device, THIRD.root, hex('link')].map((id) => `-${id}`)),
      'what brokers had got for it',
    )
    t.match(await registry.startRollover(issuing(plane)), { state: 'published' }, 'the old CA goes on')
  })

  await t.test(
    'a rollover that is aborted after it signed ends with the last certificate of it',
    async (t) => {
      const plane = await fresh(t)
      const { registry, act } = plane
      await trustFirst(plane)
      await registry.startRollover(issuing(plane))
      await registry.cutOverRollover('first', { devices: 0, adopted: 0 }, act())
      await plane.token('t')
      const issuer = { ...plane.issuer, id: SECOND.device }
      const begun = await registry.beginIssuance(
        plane.intent({ token: 't', key: 'k', commonName: deviceId('d1'), issuer }),
      )
      t.ok(begun)
      t.match(await registry.abortRollover('first', act()), { state: 'aborting', endedAt: null })
      t.equal(
        await registry.liveUnder(SECOND.device, plane.now()),
        1,
        'a reservation counts: it may be signed',
      )
      await t.rejects(registry.finishRollover('first', act()), { code: 'conflict' })
      t.match(await registry.cutOverRollover('first', { devices: 0, adopted: 0 }, act()), {
        state: 'cut-over',
        abortedAt: null,
      })
      t.match(await registry.abortRollover('first', act()), { state: 'aborting', endedAt: null })
      plane.pass(31 * DAY_MS)
      t.match(await registry.finishRollover('first', act()), { state: 'aborted' })
    },
  )

  await t.test('the old CA stays trusted while a certificate of it is good', async (t) => {
    const plane = await fresh(t)
    const { registry, act } = plane
    await trustFirst(plane)
    await plane.enroll('d1')
    await registry.startRollover(issuing(plane))
    await registry.cutOverRollover('first', { devices: 1, adopted: 1 }, act())
    await t.rejects(registry.finishRollover('first', act()), { code: 'conflict', message: /1 certificate / })
    plane.pass(30 * DAY_MS + HOUR_MS)
    t.match(await registry.finishRollover('first', act()), { state: 'finished' })
  })

  await t.test('adoption is counted by device, in pages', async (t) => {
    const plane = await fresh(t)
    const { registry } = plane
    await trustFirst(plane)
    for (const id of ['d1', 'd2', 'd3']) await plane.enroll(id)
    await registry.startRollover(issuing(plane))
    const now = plane.now()
    await registry.recordAdoption('d1', 1, now)
    await registry.recordAdoption('d2', 2, now)
    await registry.recordAdoption('d2', 1, now)
    await registry.recordAdoption('nobody', 2, now)
    const first = await registry.adoptionAfter('first', { after: 0, limit: 2, now })
    t.match(first, { devices: 2, adopted: 1, waiting: ['d1'] })
    const rest = await registry.adoptionAfter('first', { after: first.next ?? 0, limit: 2, now })
    t.match(rest, { devices: 1, adopted: 0, waiting: ['d3'], next: null })
    plane.pass(31 * DAY_MS)
    const page = { after: 0, limit: 10, now: plane.now() }
    t.match(
      await registry.adoptionAfter('first', page),
      { devices: 0 },
      'who has no good certificate is not waited for',
    )
    await t.rejects(registry.adoptionAfter('none', page), { code: 'not_found' })
  })
}
