import type { Test } from 'tap'
import { device, deviceId, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

const count = (n: number) => Array.from({ length: n }, (_, i) => i)
const codeOf = (reason: unknown) => (reason as { code?: string }).code // whatever it is, the comparison decides

export async function racesContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('100 uses of a one-use token with different keys give one certificate', async (t) => {
    const one = await fresh(t)
    const two = await one.another('b')
    await one.token('t1')
    const results = await Promise.allSettled(
      count(100).map((i) => (i % 2 === 0 ? one : two).begin('t1', `d${i}`, `k${i}`)),
    )
    const won = results.filter(({ status }) => status === 'fulfilled')
    t.equal(won.length, 1)
    const codes = results.flatMap((result) => (result.status === 'rejected' ? [codeOf(result.reason)] : []))
    t.strictSame(new Set(codes), new Set(['token_spent']))
    t.match(await one.registry.findToken(hex('t1'), one.now()), { used: 1 })
    t.equal((await one.registry.listDevices({ limit: 200, now: one.now() })).devices.length, 1)
  })

  await t.test('100 uses of a one-use token with the same key get the same answer', async (t) => {
    const one = await fresh(t)
    const two = await one.another('b')
    await one.token('t1')
    const results = await Promise.all(
      count(100).map((i) => (i % 2 === 0 ? one : two).begin('t1', 'd1', 'k1')),
    )
    t.equal(new Set(results.map((result) => JSON.stringify(result))).size, 1)
    t.match(await one.registry.findToken(hex('t1'), one.now()), { used: 1 })
  })

  await t.test('100 devices that want the same id: one gets it', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { uses: 100 })
    const results = await Promise.allSettled(count(100).map((i) => plane.begin('t1', 'd1', `k${i}`)))
    t.equal(results.filter(({ status }) => status === 'fulfilled').length, 1)
    t.match(await plane.registry.findToken(hex('t1'), plane.now()), { used: 1 })
  })

  await t.test('100 renewals at once, of three keys at most', async (t) => {
    const plane = await fresh(t)
    const { fingerprint } = await plane.enroll('d1')
    const results = await Promise.allSettled(
      count(100).map((i) => plane.registry.beginRenewal(plane.renewal(fingerprint, `k${i % 10}`))),
    )
    const serials = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value.serial] : []))
    t.equal(serials.length, 30, 'each of three keys ten times')
    t.equal(new Set(serials).size, 3)
  })

  await t.test(
    'an enrollment and the hold that stops it: whichever is first, no live certificate is left',
    async (t) => {
      const plane = await fresh(t)
      for (const i of count(20)) {
        const id = `d${i}`
        await plane.token(`t${i}`, { devices: [deviceId(id)] })
        const enrolling = plane.enrollWith(`t${i}`, id, `k${i}`)
        const [enrolled] = await Promise.allSettled([enrolling, plane.hold(`p${i}`, device(id))])
        const shown = await plane.registry.showDevice(id, plane.now())
        t.equal(shown.held, true)
        if (enrolled.status === 'rejected') t.equal(codeOf(enrolled.reason), 'held')
      }
    },
  )

  await t.test('undo and finalising at once: one of them happens', async (t) => {
    const plane = await fresh(t)
    for (const i of count(10)) {
      const { fingerprint } = await plane.enroll(`d${i}`)
      const plan = await plane.hold(`p${i}`, device(`d${i}`), { action: 'revoke', undoMs: 1000 })
      const late = { now: plan.finaliseAt ?? 0, by: 'plane' }
      const undo = () => plane.registry.undoPlan(`p${i}`, plane.act())
      const finalise = () => plane.registry.beginFinalising(`p${i}`, late)
      const both = i % 2 === 0 ? [undo(), finalise()] : [finalise(), undo()]
      const won = (await Promise.allSettled(both)).filter(({ status }) => status === 'fulfilled')
      t.equal(won.length, 1)
      const { state } = await plane.registry.showPlan(`p${i}`, plane.now())
      if (state === 'finalising') await plane.registry.finaliseSlice(`p${i}`, 10, late)
      t.equal((await plane.certificate(fingerprint)).state, state === 'finalising' ? 'revoked' : 'issued')
    }
  })

  await t.test(
    'two writers: a reader that saw a position never finds a new change at or before it',
    async (t) => {
      const one = await fresh(t)
      const two = await one.another('b')
      const reader = await one.another('c')
      await one.token('t1', { uses: 200 })
      const writing = Promise.all(
        count(200).map((i) => (i % 2 === 0 ? one : two).enrollWith('t1', `d${i}`, `k${i}`)),
      )
      let isWriting = true
      const stop = writing.finally(() => {
        isWriting = false
      })
      let seen = 0
      let gaps = 0
      while (isWriting || (await reader.registry.cursor()).position > seen) {
        const changes = await reader.registry.changesAfter(seen, 50)
        for (const { position } of changes) {
          if (position !== seen + 1) gaps += 1
          seen = position
        }
        await new Promise(setImmediate)
      }
      await stop
      t.equal(gaps, 0)
      t.equal(seen, 2 + 400, 'two fleets, and a device and a certificate each')
      t.equal(await reader.registry.verifyAudit(), null, 'two writers make one chain')
    },
  )
}
