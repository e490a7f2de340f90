import t from 'tap'
import { isMusterError } from '#shared/errors'
import { checkPeer, type PeerKind, spiffeUri } from '#shared/identity/peer'
import { TEST_DOMAIN, testAuthority, testIdentity } from '../../support/pki.ts'
import { craftCertificate, HOSTILE, type HostileName, hostileIdentity } from '../../support/pki-hostile.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

function expectDevice(now = Date.now()) {
  return { trustDomain: TEST_DOMAIN, kinds: ['device', 'service'] as const, now }
}

t.test('every kind of certificate is recognised as what it was issued for', async (t) => {
  for (const kind of ['device', 'service', 'broker', 'operator', 'server'] as const satisfies PeerKind[]) {
    const identity = await testIdentity(authority, `one-${kind}`, { kind })
    const peer = checkPeer(identity.x509, { trustDomain: TEST_DOMAIN, kinds: [kind], now: Date.now() })
    const { id, fingerprint, serial, notBefore, notAfter } = identity
    t.same(peer, { kind, id, fingerprint, serial, notBefore, notAfter })
  }
})

t.test('a serial that begins with zeros keeps its 32 digits', async (t) => {
  const serial = `0000${'ab'.repeat(14)}`
  const { x509 } = await testIdentity(authority, 'dev-1', { serial })
  t.equal(checkPeer(x509, expectDevice()).serial, serial)
})

t.test('a certificate of another kind than expected is refused', async (t) => {
  const operator = await testIdentity(authority, 'olga', { kind: 'operator' })
  t.throws(() => checkPeer(operator.x509, expectDevice()), { code: 'profile' })
  const device = await testIdentity(authority, 'dev-1')
  const expectation = { trustDomain: TEST_DOMAIN, kinds: ['operator', 'broker'] as const, now: Date.now() }
  t.throws(() => checkPeer(device.x509, expectation), { code: 'profile' })
})

t.test('a hand-made certificate without a fault is accepted', async (t) => {
  const { x509, fingerprint } = await craftCertificate(authority)
  t.match(checkPeer(x509, expectDevice()), { kind: 'device', id: 'dev-1', fingerprint })
})

/** A word of the violation that must be named, so that no certificate is refused for another fault than its own. */
const NAMED: Partial<Record<HostileName, RegExp>> = {
  'no extended key usage': /no extKeyUsage/,
  'server extended key usage': /extended key usage serverAuth/,
  'client and server extended key usage': /clientAuth, serverAuth/,
  'any extended key usage': /anyExtendedKeyUsage/,
  'client and any extended key usage': /anyExtendedKeyUsage/,
  'CA certificate as leaf': /CA certificate/,
  'keyCertSign on a leaf': /key usage of a CA/,
  'cRLSign on a leaf': /key usage of a CA/,
  'no key usage': /no keyUsage/,
  'key usage without digitalSignature': /digitalSignature/,
  'version 1': /version 1/,
  'SHA-1 signature': /signature algorithm 1\.2\.840\.10045\.4\.1/,
  'RSA-1024 key': /key RSA-1024/,
  'serial 0': /serial not positive/,
  'negative serial': /serial not positive/,
  'serial of 21 octets': /serial of 21 octets/,
  'no common name': /0 common names/,
  'two common names': /2 common names/,
  'the same common name twice': /2 common names/,
  'other common name': /common name other/,
  'NUL in the common name': /common name other/,
  'newline in the common name': /common name other/,
  'no SAN': /no subjectAltName/,
  'SAN URI of another trust domain': /SAN URI spiffe:\/\/other/,
  'SAN URI of another kind': /SAN URI spiffe:.*operator/,
  'SAN URI of another device': /common name other/,
  'SAN URI with a longer path': /impossible id/,
  'two SAN URIs': /2 SAN URIs/,
}

for (const [name, [code]] of Object.entries(HOSTILE) as [HostileName, (typeof HOSTILE)[HostileName]][]) {
  // the chain finds these two; the profile alone is right
  if (code === 'unknown_ca') continue
  t.test(`refused as ${code}: ${name}`, async (t) => {
    const { x509 } = await hostileIdentity(authority, name)
    try {
      checkPeer(x509, expectDevice())
      t.fail('accepted')
    } catch (error) {
      t.ok(isMusterError(error, code), String(error))
      if (isMusterError(error, 'profile')) t.match(error.evidence.violation, NAMED[name] ?? /no pattern/)
    }
  })
}

t.test('the last second of a certificate is valid to its end, and the next is not', async (t) => {
  const { x509, notBefore, notAfter } = await testIdentity(authority, 'dev-1')
  t.ok(checkPeer(x509, expectDevice(notBefore)))
  t.ok(checkPeer(x509, expectDevice(notAfter + 999)))
  t.throws(() => checkPeer(x509, expectDevice(notAfter + 1000)), {
    code: 'expired',
    evidence: { notAfter: new Date(notAfter).toISOString() },
  })
  t.throws(() => checkPeer(x509, expectDevice(notBefore - 1)), {
    code: 'notyet',
    evidence: { notBefore: new Date(notBefore).toISOString() },
  })
})

t.test('a trust domain that ours begins with is not ours', async (t) => {
  const { x509 } = await testIdentity(authority, 'dev-1')
  const expectation = { trustDomain: 'muster', kinds: ['device'] as const, now: Date.now() }
  t.throws(() => checkPeer(x509, expectation), { code: 'profile' })
  t.equal(spiffeUri(TEST_DOMAIN, 'device', 'dev-1'), 'spiffe://muster.test/device/dev-1')
})
