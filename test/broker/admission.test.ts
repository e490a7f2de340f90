import t from 'tap'
import { REFUSALS, refusalCode } from '#shared/refusals'
import { admit, liveUntil, refusalOf, stillLive } from '../../broker/judge/admission.ts'
import { refusedReport, shown } from '../../broker/refusals.ts'
import type { AdmissionRecord } from '../../broker/replica/replica.ts'
import { admissionRecord } from '../support/broker.ts'
import type { TestIdentity } from '../support/pki.ts'

const NOW = Date.UTC(2026, 10, 22)
const identity = {
  id: 'dev-1',
  kind: 'device',
  fingerprint: 'f1',
  serial: '01',
  issuer: 'ca',
  notBefore: NOW - 1000,
  notAfter: NOW + 60_000,
} as TestIdentity // the fields that a record is made of
const live = admissionRecord(identity)
const peer = { kind: 'device', id: 'dev-1', fingerprint: 'f1', serial: '01' } as const
const request = { record: live, clientId: 'dev-1', peer, now: NOW, silentMs: 0, maxStalenessMs: 1000 }

function withCertificate(change: Partial<AdmissionRecord['certificate']>): AdmissionRecord {
  return { ...live, certificate: { ...live.certificate, ...change } }
}
function withDevice(change: Partial<AdmissionRecord['device']>): AdmissionRecord {
  return { ...live, device: { ...live.device, ...change } }
}
const hold = { id: 'plan-1', scope: { kind: 'batch', id: 'b1' }, state: 'active' } as const

t.test('a recorded, live certificate of an active device under no hold is admitted', async (t) => {
  t.same(admit(request), { admitted: true })
  t.same(admit({ ...request, clientId: null }), { admitted: true })
  t.same(admit({ ...request, record: withCertificate({ state: 'issued' }) }), { admitted: true })
})

t.test(
  'every state that ends a certificate is refused with its own code and the evidence of the table',
  async (t) => {
    const refused = {
      revoked: withCertificate({ state: 'revoked', revokedAt: NOW - 1, reason: 'keyCompromise' }),
      retired: withDevice({ state: 'retired' }),
      held: { ...live, hold },
      pending: withDevice({ state: 'pending' }),
      superseded: withCertificate({ state: 'superseded' }),
      expired: withCertificate({ notAfter: NOW - 1000 }),
      notyet: withCertificate({ notBefore: NOW + 1 }),
    } as const
    for (const [code, record] of Object.entries(refused)) {
      t.equal(stillLive(record, NOW), code)
      const decision = admit({ ...request, record })
      t.match(decision, { admitted: false, code })
      const { evidence } = REFUSALS[refusalCode(code as keyof typeof refused)]
      t.same(Object.keys(decision.admitted ? {} : decision.evidence), [...evidence], code)
    }
    t.equal(stillLive(withDevice({ state: 'expected' }), NOW), 'pending')
  },
)

t.test('a state that this broker does not know lets nobody in', async (t) => {
  const state = 'suspect' as 'active' // from a newer registry, or a damaged replica
  t.equal(stillLive(withCertificate({ state }), NOW), 'unrecorded')
  t.match(admit({ ...request, record: withCertificate({ state }) }), { admitted: false, code: 'unrecorded' })
  t.equal(stillLive(withDevice({ state }), NOW), 'pending')
})

t.test('what the registry has no record of is refused', async (t) => {
  t.match(admit({ ...request, record: null }), {
    admitted: false,
    code: 'unrecorded',
    evidence: { fingerprint: 'f1' },
  })
  t.equal(stillLive(null, NOW), 'unrecorded')
})

t.test('revocation is named before a hold, and a hold before the dates', async (t) => {
  t.equal(stillLive({ ...withCertificate({ state: 'revoked' }), hold }, NOW), 'revoked')
  t.equal(stillLive({ ...withCertificate({ notAfter: 0 }), hold }, NOW), 'held')
})

t.test('an overlap ends at its time, whether or not a change says so', async (t) => {
  const record = withCertificate({ supersededFrom: NOW })
  t.equal(stillLive(record, NOW - 1), null)
  t.equal(stillLive(record, NOW), 'superseded')
  t.equal(liveUntil(record), NOW)
})

t.test('a certificate is valid to the end of the second that notAfter names', async (t) => {
  t.equal(stillLive(live, live.certificate.notAfter + 999), null)
  t.equal(stillLive(live, live.certificate.notAfter + 1000), 'expired')
  t.equal(liveUntil(live), live.certificate.notAfter + 1000)
})

t.test('a client id that is not the certificate’s own is refused', async (t) => {
  const others = [
    'A',
    '+',
    '#',
    '$SYS',
    '../A',
    'dev-1\u0000',
    '\ufeffdev-1',
    '__proto__',
    'constructor',
    '',
    'DEV-1',
  ]
  for (const clientId of [...others, 'dev-1:x', ' dev-1', 'dev-1 ', 'x'.repeat(65_535)]) {
    t.match(
      admit({ ...request, clientId }),
      { admitted: false, code: 'idmismatch' },
      JSON.stringify(clientId.slice(0, 20)),
    )
  }
})

t.test('a service may name its clients, and only its own', async (t) => {
  const service = { kind: 'service', id: 'backend', fingerprint: 'f2', serial: '02' } as const
  const record = admissionRecord({ ...identity, ...service })
  const at = (clientId: string) => admit({ ...request, record, peer: service, clientId }).admitted
  t.ok(at('backend'))
  t.ok(at('backend:reader-1'))
  for (const clientId of [
    'backend:',
    'backend:a/b',
    'backend:+',
    'backend:a:b',
    'backend2',
    'backend2:a',
    ':a',
    'dev-1',
  ]) {
    t.notOk(at(clientId), clientId)
  }
})

t.test('a record of another certificate, identity or kind does not admit', async (t) => {
  for (const other of [{ fingerprint: 'f9' }, { id: 'dev-2' }, { kind: 'service' as const }]) {
    const decision = admit({ ...request, peer: { ...peer, ...other } })
    t.match(decision, { admitted: false, code: 'profile', evidence: { violation: String } })
  }
})

t.test('a broker that has not heard the registry for too long admits nobody new', async (t) => {
  t.same(admit({ ...request, silentMs: 1000 }), { admitted: true })
  t.match(admit({ ...request, silentMs: 1001 }), {
    code: 'stale',
    evidence: { silentMs: 1001, maxStalenessMs: 1000 },
  })
  t.match(admit({ ...request, record: { ...live, hold }, silentMs: 9999 }), { code: 'held' })
})

t.test('evidence shows a client’s own text without its control characters, cut', async (t) => {
  t.equal(shown('a\u0000b\n\u202e\ufeff'), 'a\\u{0}b\\u{a}\\u{202e}\\u{feff}')
  t.equal(shown('x'.repeat(1000)).length, 201)
  const refused = { device: 'dev-1', fingerprint: 'f1', address: '::1' }
  t.match(refusedReport({ code: 'policy_pub', evidence: { topic: 'a\u0007' } }, refused, NOW), {
    type: 'refused',
    code: 'R-POLICY-PUB',
    evidence: { topic: 'a\\u{7}' },
    device: 'dev-1',
  })
  t.same(refusalOf(null, 'held', NOW), { code: 'held', evidence: {} })
})
