import { join } from 'node:path'
import t from 'tap'
import { isMusterError } from '#shared/errors'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import fc from '../../support/properties.ts'
import { BEGIN, device, deviceId, type Plane, planeOf } from '../../support/registry-plane.ts'
import { replayed, snapshotOf } from '../../support/registry-replica.ts'

/** Few names, so that the steps of a walk meet each other. */
const small = fc.integer({ min: 0, max: 3 })

/** One intent each; what is refused is refused, and must leave no trace. */
const STEPS = {
  token: (plane, a, b) =>
    plane.token(`t${a}`, { uses: b + 1, devices: b === 0 ? [deviceId(`d${a}`)] : null, naming: null }),
  cancel: (plane, a) => plane.registry.cancelToken(`t${a}`, plane.act()),
  reserve: (plane, a, b) => plane.begin(`t${a}`, `d${b}`, `k${b}`),
  enroll: (plane, a, b) => plane.enrollWith(`t${a}`, `d${b}`, `k${b}`),
  enrollDemo: async (plane, a, b) => {
    await plane.token(`demo-${a}`, { batch: 'demo', uses: 3 }).catch(() => undefined)
    await plane.enrollWith(`demo-${a}`, `demo-${b}`, `demo key ${b}`)
  },
  renew: async (plane, a, b) => plane.renew(await newest(plane, a), `k${a}.${b}`),
  reissue: async (plane, a, b) => {
    await plane.reissue(`r${a}.${b}`, `d${a}`)
    await plane.enrollWith(`r${a}.${b}`, `d${a}`, `k${a}.${b}`)
  },
  service: (plane, a, b) => plane.service(`s${a}`, `service key ${a}.${b}`),
  retire: (plane, a) => plane.registry.retireDevice(`d${a}`, plane.act()),
  connect: async (plane, a, b) =>
    plane.report([plane.connected({ fingerprint: await newest(plane, a), device: `d${a}` }, `c${b}`)]),
  propose: (plane, a, b) => plane.propose(`p${a}.${b}`, device(`d${a}`, `d${b}`)),
  hold: (plane, a, b) => plane.hold(`h${a}.${b}`, b === 0 ? { scope: 'batch', id: 'lab' } : device(`d${a}`)),
  undo: (plane, a, b) => plane.registry.undoPlan(`h${a}.${b}`, plane.act()),
  revoke: (plane, a, b) => plane.revoke(`r${a}.${b}`, device(`d${b}`)),
  supersede: (plane, a) => plane.registry.supersedeDue(plane.now(), a + 1),
  clear: (plane) => plane.registry.clearSynthetic(plane.act()),
  pass: async (plane, a) => plane.pass(a * 6 * 3_600_000),
} as const satisfies Record<string, (plane: Plane, a: number, b: number) => Promise<unknown>>
type Step = keyof typeof STEPS

async function newest(plane: Plane, a: number): Promise<string> {
  const { certificates } = await plane.registry.showDevice(`d${a}`, plane.now())
  return certificates[0]?.fingerprint ?? 'none'
}

/** What must hold after any history; a sentence for each thing that does not. */
async function broken({ registry, now }: Plane): Promise<string[]> {
  const faults: string[] = []
  const { devices } = await registry.listDevices({ limit: 1000, now: now() })
  const shown = await Promise.all(devices.map(({ id }) => registry.showDevice(id, now())))
  const certificates = shown.flatMap((one) => one.certificates)
  const tokens = await registry.listTokens({ now: now() })
  const enrolled = (await registry.listAudit(0, 10_000)).filter(({ action }) => /^(re)?enroll$/.test(action))
  for (const { id, used } of tokens.filter(({ batch }) => batch !== 'demo')) {
    const uses = enrolled.filter(({ by }) => by === `token:${id}`)
    if (uses.length !== used) faults.push(`${used} uses of ${id} made ${uses.length} enrollments`)
  }
  if (new Set(certificates.map(({ serial }) => serial)).size !== certificates.length)
    faults.push('a serial came twice')
  if ((await registry.verifyAudit()) !== null) faults.push('the audit chain is broken')
  for (const one of shown) {
    const isKnown = one.certificates.some(({ fingerprint }) => fingerprint !== null)
    if (one.state === 'active' && !isKnown) faults.push(`${one.id} is active without a certificate`)
    if (
      one.state === 'expected' &&
      one.certificates.some(({ state }) => state === 'issued' || state === 'active')
    ) {
      faults.push(`${one.id} is expected and has a certificate`)
    }
  }
  const revoked = await registry.revokedBy(certificates[0]?.issuer ?? '', 0)
  for (const { serial, state } of certificates) {
    const isListed = revoked.some((entry) => entry.serial === serial)
    if (isListed !== (state === 'revoked')) faults.push(`${serial} is ${state}, the CRL says otherwise`)
  }
  return faults
}

t.test('after any walk of intents the invariants hold, and the changes add up to the snapshot', async (t) => {
  const steps = fc.constantFrom<Step>(...(Object.keys(STEPS) as Step[])) // the keys of the table above
  const walk = fc.array(fc.tuple(steps, small, small), { minLength: 10, maxLength: 60 })
  let refused = 0
  let done = 0
  let runs = 0
  await fc.assert(
    fc.asyncProperty(walk, async (walked) => {
      const path = join(t.testdir({}), `registry-${++runs}.db`)
      const registry = await openRegistry(path, { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN })
      const plane = planeOf(registry)
      try {
        await registry.createFleet({ id: 'demo', synthetic: true }, plane.act())
        await registry.createBatch({ id: 'demo', fleet: 'demo' }, plane.act())
        await plane.broker()
        for (const id of ['d0', 'd1', 'd2']) await plane.report([plane.connected(await plane.enroll(id), id)])
        for (const [step, a, b] of walked) {
          try {
            await STEPS[step](plane, a, b)
            done += 1
          } catch (error) {
            if (!isMusterError(error)) throw error
            refused += 1
          }
        }
        const faults = await broken(plane)
        const now = plane.now()
        const [replica, snapshot] = [await replayed(registry), await snapshotOf(registry, now)]
        const isSame = JSON.stringify(replica.contents(now)) === JSON.stringify(snapshot.contents(now))
        if (faults.length > 0 || !isSame)
          throw new Error([...faults, isSame ? '' : 'replay differs'].join('; '))
      } finally {
        await registry.close()
      }
    }),
    { numRuns: 60 },
  )
  t.ok(done > refused / 3, `${done} intents were done and ${refused} refused`)
})
