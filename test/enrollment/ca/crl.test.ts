import { createPublicKey, verify } from 'node:crypto'
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import t from 'tap'
import { bitsOf, readDer } from '#shared/pki/der'
import { OID } from '#shared/pki/oid'
import { type RevokedEntry, signCrl } from '../../../enrollment/ca/crl.ts'
import { testAuthority } from '../../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())
const issuer = authority.device

const START = Math.floor(Date.now() / 1000) * 1000
const DAY_MS = 24 * 3600 * 1000

const revoked = (serial: string, reason: RevokedEntry['reason'], revokedAt = START): RevokedEntry => ({
  serial,
  reason,
  revokedAt,
})
const crlRequest = (entries: RevokedEntry[]) => ({
  number: 7,
  thisUpdate: START + 123,
  nextUpdate: START + DAY_MS + 999,
  entries,
})

t.test('a CRL, read by another implementation', async (t) => {
  const entries = [
    revoked('ff'.repeat(16), 'keyCompromise', START - 1),
    revoked(`00${'7f'.repeat(15)}`, 'unspecified', Date.UTC(2049, 11, 31) > START ? START - DAY_MS : START),
    revoked(`00${'80'.repeat(15)}`, 'privilegeWithdrawn', START + 999),
    revoked('7f'.repeat(20), 'cessationOfOperation', Date.UTC(2000, 0, 1)),
  ]
  const der = await signCrl(issuer, crlRequest(entries))
  const crl = new x509.X509Crl(der)
  t.ok(await crl.verify({ publicKey: new x509.X509Certificate(issuer.pem) }))
  t.equal(crl.issuer, new x509.X509Certificate(issuer.pem).subject)
  t.equal(crl.thisUpdate.getTime(), START)
  t.equal(crl.nextUpdate?.getTime(), START + DAY_MS)
  t.same(
    crl.entries.map((entry) => [
      BigInt(`0x${entry.serialNumber}`),
      entry.revocationDate.getTime(),
      entry.reason ?? 0,
    ]),
    entries.map(({ serial, revokedAt }, index) => [
      BigInt(`0x${serial}`),
      Math.floor(revokedAt / 1000) * 1000,
      [1, 0, 9, 5][index],
    ]),
  )
  t.equal(crl.entries[1]?.extensions.length, 0, 'reason 0 is left out')
  const listed = readDer(der).children[0]?.children[5]?.children ?? []
  t.same(
    listed.map((entry) => entry.children[0]?.content.toString('hex')),
    [`00${'ff'.repeat(16)}`, '7f'.repeat(15), `00${'80'.repeat(15)}`, '7f'.repeat(20)],
    'serials are positive and minimal',
  )
  t.same(
    crl.extensions.map(({ type, critical }) => [type, critical]),
    [
      [OID.authorityKeyIdentifier, false],
      [OID.crlNumber, false],
      [OID.issuingDistributionPoint, true],
    ],
  )
  t.same(Buffer.from(crl.extensions[1]?.value ?? new ArrayBuffer(0)), Buffer.from([2, 1, 7]))
})

t.test('a CRL without entries has no empty list', async (t) => {
  const der = await signCrl(issuer, crlRequest([]))
  const [tbs, , signature] = readDer(der).children
  t.equal(tbs?.children.length, 6)
  t.ok(verify('sha256', tbs?.raw ?? der, createPublicKey(issuer.pem), bitsOf(signature)))
})

t.test('a CRL of 100 000 entries is made in one go', async (t) => {
  const entries = Array.from({ length: 100_000 }, (_, index) =>
    revoked(`a5${index.toString(16).padStart(30, '0')}`, 'keyCompromise', START - index),
  )
  const started = performance.now()
  const der = await signCrl(issuer, crlRequest(entries))
  // some 70 ms; what is quadratic takes minutes
  t.ok(performance.now() - started < 2000)
  const list = readDer(der).children[0]?.children[5]
  t.equal(list?.children.length, 100_000)
})

t.test('a CRL that breaks a rule is not signed', async (t) => {
  const one = revoked('a5'.repeat(16), 'keyCompromise')
  const wrong: [string, Partial<Parameters<typeof signCrl>[1]>][] = [
    ['crl_number', { number: 0 }],
    ['crl_number', { number: 1.5 }],
    ['next_update', { nextUpdate: START + 999 }],
    ['next_update', { nextUpdate: Number.NaN }],
    ['entry_once', { entries: [one, one] }],
    ['entry_serial', { entries: [revoked('00', 'keyCompromise')] }],
    ['entry_serial', { entries: [revoked('7f'.repeat(21), 'keyCompromise')] }],
    ['entry_serial', { entries: [revoked('abc', 'keyCompromise')] }],
    ['entry_serial', { entries: [revoked('', 'keyCompromise')] }],
    // what no caller of ours can write, read from a damaged row
    ['entry_reason', { entries: [revoked('a5', 'certificateHold' as never)] }],
    ['entry_not_in_future', { entries: [revoked('a5', 'keyCompromise', START + DAY_MS)] }],
  ]
  for (const [rule, changes] of wrong) {
    const signing = signCrl(issuer, { ...crlRequest([]), ...changes })
    await t.rejects(signing, { code: 'lint_failed', evidence: { rule } }, rule)
  }
  await t.rejects(signCrl(issuer, crlRequest([revoked('a5zz', 'keyCompromise')])), RangeError)
  await t.rejects(signCrl(issuer, crlRequest([revoked('zz', 'keyCompromise')])), RangeError)
})
