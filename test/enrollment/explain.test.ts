import t from 'tap'
import type { Report } from '#shared/feed'
import { explain } from '../../enrollment/explain.ts'
import { enrollBroker, enrollDevice, startEnrollment } from '../support/enrollment.ts'

const DAY_MS = 86_400_000

t.test('explain walks from TCP to policy and names the cause', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock })
  const { admin } = service
  const device = await enrollDevice(service, { id: 'pump-1' })
  const broker = service.adminClient(await enrollBroker(service, 'edge-1'))
  let sequence = 0
  const report = async (...reports: Report[]) => {
    sequence += 1
    const head = {
      boot: 'b',
      sequence,
      at: Date.now(),
      applied: null,
      sessions: 0,
      url: 'mqtts://localhost:1',
    }
    const reply = await broker.send('POST', '/v1/feed/reports', { json: { ...head, reports } })
    t.equal(reply.status, 200, reply.text)
  }
  const refused = (code: string, at: number): Report => ({
    type: 'refused',
    at,
    code,
    evidence: { clientId: 'x', expected: 'pump-1' },
    device: 'pump-1',
    fingerprint: device.fingerprint,
    address: '10.0.0.9',
  })
  const verdictOf = (explanation: { steps: { step: string; verdict: string }[] }) =>
    Object.fromEntries(explanation.steps.map(({ step, verdict }) => [step, verdict]))

  t.test('a device that was never seen by a broker may come in', async (t) => {
    const explanation = await admin.explain('pump-1')
    t.match(explanation, { device: 'pump-1', verdict: 'admitted', code: null, fix: null })
    t.match(verdictOf(explanation), {
      tcp: 'unknown',
      chain: 'ok',
      dates: 'ok',
      registry: 'ok',
      state: 'ok',
      holds: 'ok',
    })
    t.match(
      explanation.steps.map(({ step }) => step),
      ['tcp', 'tls', 'chain', 'dates', 'registry', 'state', 'holds'],
    )
  })

  t.test('serial and fingerprint lead to the same device', async (t) => {
    for (const subject of [device.serial, device.serial.toUpperCase(), device.fingerprint]) {
      t.match(await admin.explain(subject), { subject, device: 'pump-1', verdict: 'admitted' })
    }
    const colons = device.fingerprint.toUpperCase().match(/../g)?.join(':') ?? ''
    t.match(await admin.explain(colons), { device: 'pump-1' })
  })

  t.test('a refusal at the broker is the cause until the device was let in', async (t) => {
    await report(refused('R-IDMISMATCH', Date.now()))
    t.match(await admin.explain('pump-1'), {
      verdict: 'refused',
      code: 'R-IDMISMATCH',
      fix: /device id as MQTT client id/,
      lastRefusals: [{ code: 'R-IDMISMATCH', by: 'edge-1', evidence: { clientId: 'x' } }],
    })
    await report({
      type: 'connected',
      at: Date.now() + 1,
      fingerprint: device.fingerprint,
      device: 'pump-1',
      address: '10.0.0.9',
      connection: 'c1',
      resumed: false,
    })
    t.match(await admin.explain('pump-1'), { verdict: 'admitted', code: null })
  })

  t.test('a device that has not enrolled is told so', async (t) => {
    await admin.createToken({ batch: 'list', uses: 1, devices: ['pump-2'] })
    t.match(await admin.explain('pump-2'), { verdict: 'refused', code: 'R-NOCERT', text: /has not enrolled/ })
  })

  t.test('a certificate that has expired names the way back', async (t) => {
    clock.offsetMs = 31 * DAY_MS
    // not over HTTP: the operator's certificate has expired as well
    const explanation = await explain(service.deps, 'pump-1')
    clock.offsetMs = 0
    t.match(explanation, { code: 'R-EXPIRED', fix: '`muster device reissue pump-1`' })
  })

  t.test('of a stranger the newest refusal is told', async (t) => {
    const stranger = {
      ...refused('R-UNKNOWN-CA', Date.now()),
      device: null,
      fingerprint: 'ab'.repeat(32),
      address: '10.9.9.9',
    }
    await report(stranger as Report)
    t.match(await admin.explain('ab'.repeat(32)), { device: null, verdict: 'refused', code: 'R-UNKNOWN-CA' })
  })

  t.test(
    'a second factor that was wrong or missing is the cause, and one that is asked for is told',
    async (t) => {
      await admin.setFactor({ kind: 'fleet', id: 'default' }, { kind: 'password' })
      const says = (explanation: { steps: { step: string; says: string }[] }) =>
        explanation.steps.find(({ step }) => step === 'factor')?.says
      t.match(says(await admin.explain('pump-1')), /password/)
      const wrong = refused('R-FACTOR', Date.now() + 1_000) as Report & { type: 'refused' }
      await report({ ...wrong, evidence: { factor: 'password', fault: 'missing' } })
      const explanation = await admin.explain('pump-1')
      t.match(explanation, { verdict: 'refused', code: 'R-FACTOR', text: /missing/ })
      t.match(explanation.remedies[0], { code: 'R-FACTOR', fix: /password of CONNECT/ })
      const unfetched = { factor: 'jwt', fault: 'keys', why: 'ECONNREFUSED' }
      await report({ ...wrong, at: Date.now() + 1_100, evidence: unfetched })
      const { text } = await admin.explain('pump-1')
      t.match(text, /broker had no keys .*ECONNREFUSED/, 'that is no fault of what it has brought')
      t.notMatch(text, /does not hold/)
      await admin.clearFactor({ kind: 'fleet', id: 'default' })
      t.match(await admin.explain('pump-1'), { verdict: 'admitted', code: null })
    },
  )

  t.test('a broker that is stale is the cause, and each code of the last refusals has its fix', async (t) => {
    await report(refused('R-STALE', Date.now() + 2_000))
    const held = refused('R-HELD', Date.now() + 1_500) as Report & { type: 'refused' }
    await report({ ...held, evidence: { hold: 'p-1', scope: 'plan p-1' } })
    const explanation = await admin.explain('pump-1')
    t.match(explanation, { verdict: 'refused', code: 'R-STALE', fix: /muster broker list/ })
    const fixes = Object.fromEntries(explanation.remedies.map(({ code, fix }) => [code, fix]))
    t.match(fixes, { 'R-STALE': /broker list/, 'R-HELD': /muster release p-1/, 'R-IDMISMATCH': /client id/ })
    t.notMatch(Object.values(fixes).join(), /<device>|<hold>/)
  })

  t.test('of an address the devices behind it are told, and it is not taken for one of them', async (t) => {
    await report({ ...refused('R-POLICY-SUB', Date.now() + 3_000), address: '10.8.8.8' } as Report)
    const explanation = await admin.explain('10.8.8.8')
    t.match(explanation, { device: null, fix: /policy show pump-1/ })
    t.match(explanation.lastRefusals, [{ device: 'pump-1' }])
  })

  t.test('what was never seen is not found', async (t) => {
    for (const subject of [
      'no-such-device',
      '00'.repeat(16),
      'ff'.repeat(32),
      '203.0.113.9',
      '__proto__',
      '%00',
    ]) {
      await t.rejects(admin.explain(subject), { code: 'not_found' }, subject)
    }
  })
})
