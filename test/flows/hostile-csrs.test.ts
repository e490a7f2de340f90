import { createHash, X509Certificate } from 'node:crypto'
import t from 'tap'
import { checkPeer } from '#shared/identity/peer'
import { decodeCsr } from '../../enrollment/ca/check-csr.ts'
import { type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { hostileCsrs } from '../support/hostile-csrs.ts'

/** One token may fail so often in a minute before it is told to wait; the corpus is no guess. */
const REQUESTS_PER_TOKEN = 100

/** A certificate is within the profile when it is a device's of this plane, and names nobody but that device. */
function outsideOfProfile(pem: string, service: RunningEnrollment): string | null {
  const leaf = new X509Certificate(pem)
  try {
    const { id } = checkPeer(leaf, { trustDomain: 'muster.local', kinds: ['device'], now: Date.now() })
    if (!/^(?:victim-\d+|dev-1|root)$/.test(id)) return `it is for ${id}`
  } catch (error) {
    return String(error)
  }
  if (!leaf.checkIssued(new X509Certificate(service.deps.authority.device.pem))) return 'another issuer'
  if (leaf.subjectAltName?.includes(',')) return `SAN ${leaf.subjectAltName}`
  return leaf.ca ? 'a CA' : null
}

t.test('a corpus of hostile requests gets no certificate outside the profile, and no 500', async (t) => {
  const service = await startEnrollment(t)
  const corpus = hostileCsrs('muster.local')
  t.ok(corpus.length >= 300, `${corpus.length} requests`)
  const distinct = new Set(corpus.map(({ der }) => createHash('sha256').update(der).digest('hex')))
  t.equal(distinct.size, corpus.length, 'each is another one')

  const client = service.client()
  const outcomes = { issued: [] as string[], refused: 0 }
  let token = ''
  for (const [at, { name, der }] of corpus.entries()) {
    if (at % REQUESTS_PER_TOKEN === 0) {
      const made = await service.admin.createToken({ batch: 'hostile', uses: 10_000 })
      token = made.token
    }
    const csr = der.toString('base64')
    const authorization = `Basic ${Buffer.from(`:${token}`).toString('base64')}`
    const est = await client.send('POST', '/.well-known/est/simpleenroll', {
      headers: { authorization, 'content-type': 'application/pkcs10' },
      body: csr,
    })
    const json = await client.send('POST', '/v1/enroll', { json: { token, csr } })
    const isIssued = json.status === 200
    t.equal(est.status, json.status, `${name}: both ways in agree`)
    if (!isIssued && !(json.status >= 400 && json.status < 500))
      t.fail(`${name}: ${json.status} ${json.text}`)
    if (!isIssued && !/"code":"R-(CSR|ID)-/.test(json.text)) t.fail(`${name}: ${json.text}`)
    if (!isIssued) outcomes.refused++
    else {
      outcomes.issued.push(name)
      const { certificate } = JSON.parse(json.text)
      t.equal(outsideOfProfile(certificate, service), null, name)
      const asked = decodeCsr(csr)
      const key = new X509Certificate(certificate).publicKey.export({ type: 'spki', format: 'der' })
      t.ok(asked.includes(key), `${name}: for the key that it was asked for`)
    }
  }
  t.comment(`refused ${outcomes.refused}, harmless: ${outcomes.issued.join(' | ')}`)
  t.ok(outcomes.refused > 300)
  t.equal((await client.send('GET', '/healthz')).status, 200)
})
