import { createPrivateKey } from 'node:crypto'
import t, { type Test } from 'tap'
import { newRequest, type Pair, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { testManufacturer } from '../support/manufacturer.ts'
import { askForKey as ask, pairOf } from '../support/serverkeygen.ts'

/** Fleet `kiosks` lets the plane make keys, the fleet of `line-9` does not. */
async function startWithKiosks(t: Test): Promise<RunningEnrollment> {
  const service = await startEnrollment(t, { data: t.testdir({}) })
  await service.admin.createFleet({ id: 'kiosks', profile: { serverKeys: true } })
  for (const id of ['kiosks-1', 'kiosks-2']) await service.admin.createBatch({ id, fleet: 'kiosks' })
  await service.admin.createBatch({ id: 'line-9' })
  return service
}

t.test('keys that the plane makes for devices with a claim', async (t) => {
  const service = await startWithKiosks(t)
  const { admin } = service
  const claimOf = async (
    of: { batch?: string; uses?: number; devices?: string[]; approval?: boolean } = {},
  ) => {
    const { key, csr } = await newRequest()
    const claim = await admin.createClaim({ batch: 'kiosks-1', uses: 1, ...of, csr })
    return { id: claim.id, key, certificate: claim.certificate }
  }
  const asked = async (pair: Pair, id: string, label?: string) =>
    ask(service, { csr: (await newRequest(id)).der, pair, ...(label === undefined ? {} : { label }) })
  const used = async (id: string) => (await admin.listTokens()).find((token) => token.id === id)?.used

  t.test('come with a certificate of the device, on one use', async (t) => {
    const claim = await claimOf()
    const reply = await asked(claim, 'claimed-1', 'kiosks-1')
    t.equal(reply.status, 200, reply.text)
    const { leaf, key } = pairOf(reply)
    t.ok(leaf.checkPrivateKey(createPrivateKey(key)))
    t.equal(leaf.subject, 'CN=claimed-1')
    t.equal(await used(claim.id), 1)
    t.match(await asked(claim, 'claimed-2'), { status: 401, text: /^R-TOKEN-SPENT/ }, 'over its count')
  })

  t.test('are refused by name, and spend nothing', async (t) => {
    const claim = await claimOf({ uses: 5, devices: ['listed-1'] })
    t.match(await asked(claim, 'listed-1', 'kiosks-2'), { status: 403, text: /^R-TOKEN-BATCH/ })
    t.match(await asked(claim, 'stranger-1'), { status: 422, text: /^R-CSR-SUBJECT/ })
    t.equal(await used(claim.id), 0)
    await admin.cancelToken(claim.id)
    t.match(await asked(claim, 'listed-1'), { status: 401, text: /^R-TOKEN-CANCELLED/ })
    const elsewhere = await claimOf({ batch: 'line-9', uses: 5 })
    t.match(
      await asked(elsewhere, 'line-9-1'),
      { status: 403, text: /^R-SERVER-KEY/ },
      'its fleet allows none',
    )
    t.match(await asked(elsewhere, 'line-9-1', 'kiosks-1'), { status: 403 }, 'and a label grants none')
    t.equal(await used(elsewhere.id), 0)
    const held = await claimOf({ batch: 'kiosks-2', uses: 5 })
    const plan = await admin.proposePlan({ action: 'hold', scope: { kind: 'batch', id: 'kiosks-2' } })
    await admin.applyPlan(plan.id, plan.counts.devices)
    t.match(await asked(held, 'held-1'), { status: 403, text: /^R-HELD/ })
    t.equal(await used(held.id), 0)
  })

  t.test('are given again for the same request, and to nobody else who has the claim', async (t) => {
    const claim = await claimOf({ uses: 5 })
    const { der: csr } = await newRequest('shared-1')
    const first = pairOf(await ask(service, { csr, pair: claim }))
    t.match(await asked(claim, 'shared-1'), { status: 409, text: /^R-ID-TAKEN/ })
    const other = await claimOf({ uses: 5 })
    t.match(
      await ask(service, { csr, pair: other }),
      { status: 409, text: /^R-ID-TAKEN/ },
      'nor with another claim',
    )
    const second = pairOf(await ask(service, { csr, pair: claim }))
    t.notOk(first.der.equals(second.der))
    t.match((await admin.showDevice('shared-1')).certificates, [{ state: 'issued' }, { state: 'revoked' }])
    t.equal(await used(claim.id), 1)
  })

  t.test('wait for approval where the claim demands it', async (t) => {
    const claim = await claimOf({ uses: 2, approval: true })
    const { der: csr } = await newRequest('patient-1')
    t.match(await ask(service, { csr, pair: claim }), { status: 202, text: /^R-PENDING/ })
    const { application } = await admin.showDevice('patient-1')
    await admin.approveDevice('patient-1', { spki: application?.spki ?? '' })
    t.match(
      await asked(claim, 'patient-1'),
      { status: 422, text: /^R-CSR-KEY/ },
      'another request is not the one that was approved',
    )
    t.equal((await ask(service, { csr, pair: claim })).status, 200)
  })
})

t.test('keys that the plane makes for devices with the certificate of their manufacturer', async (t) => {
  const service = await startWithKiosks(t)
  const { admin } = service
  const acme = testManufacturer()
  await admin.addManufacturer({ id: 'acme', batch: 'kiosks-1', ca: acme.ca })
  const rows = ['SN-1', 'SN-2', 'SN-3'].map((serialNumber, at) => ({ serialNumber, id: `oven-${at + 1}` }))
  await admin.listManufactured('acme', { rows })
  const asked = async (pair: Pair, id?: string) => ask(service, { csr: (await newRequest(id)).der, pair })

  t.test('come under the id of the list, and once more when the answer was lost', async (t) => {
    const idevid = acme.issue('SN-1')
    t.match(await asked(idevid, 'oven-2'), { status: 422, text: /^R-CSR-SUBJECT/ })
    const first = pairOf(await asked(idevid))
    t.equal(first.leaf.subject, 'CN=oven-1')
    const second = pairOf(await asked(idevid, 'oven-1'))
    t.notOk(first.der.equals(second.der), 'whatever the key of the request: the certificate says who it is')
    t.match((await admin.showDevice('oven-1')).certificates, [{ state: 'issued' }, { state: 'revoked' }])
    const neighbour = acme.issue('SN-2')
    t.match(
      await asked(neighbour, 'oven-1'),
      { status: 422, text: /^R-CSR-SUBJECT/ },
      'nobody takes its place',
    )
  })

  t.test('are refused by name to who is not on the list, or not of that manufacturer', async (t) => {
    t.match(await asked(acme.issue('SN-9')), { status: 403, text: /^R-IDEVID-UNLISTED/ })
    const other = testManufacturer() // the same name, another key
    const refused = await asked(other.issue('SN-2'))
    t.ok(refused.status === 401 || refused.status === 403, refused.text)
    const { der: csr } = await newRequest()
    const foreign = await ask(service, { csr, pair: acme.issue('SN-2'), label: 'kiosks-2' })
    t.match(foreign, { status: 403, text: /^R-TOKEN-BATCH/ })
    await admin.cancelManufacturer('acme')
    const cancelled = await asked(acme.issue('SN-3'))
    t.ok(cancelled.status === 401 || cancelled.status === 403, cancelled.text)
    t.match(await admin.showDevice('oven-3'), { state: 'expected', certificates: [] })
  })
})
