import { createPrivateKey, createPublicKey, X509Certificate } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { element, explicit, octetString, oid, sequence, setOf } from '#shared/pki/der-write'
import { generateKey, sha256Hex } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { writeKeyAndCertificate } from '../../../enrollment/http/est-message.ts'
import { enrollDevice, newRequest, startEnrollment } from '../../support/enrollment.ts'
import { craftCsr, KEY_MAKERS } from '../../support/pki-csr.ts'
import fc from '../../support/properties.ts'
import { askForKey as ask, pairOf, partsOf } from '../../support/serverkeygen.ts'

/** Every octet that the service has written. */
function written(directory: string): Buffer[] {
  const files = readdirSync(directory, { recursive: true, withFileTypes: true }).filter((one) => one.isFile())
  return files.map((file) => readFileSync(join(file.parentPath, file.name)))
}

t.test('keys that the plane makes', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  await admin.createFleet({ id: 'kiosks', profile: { serverKeys: true } })
  await admin.createBatch({ id: 'kiosks-1', fleet: 'kiosks' })
  const newToken = async (of: { batch?: string; uses?: number; approval?: boolean } = {}) =>
    (await admin.createToken({ batch: 'kiosks-1', uses: 1, ...of })).token

  t.test('two parts in base64, and the key is that of the certificate', async (t) => {
    const { der: csr } = await newRequest('kiosk-1')
    const reply = await ask(service, { csr, token: await newToken() })
    t.equal(reply.status, 200, reply.text)
    t.strictSame(
      partsOf(reply).map(({ headers }) => headers),
      [
        ['Content-Type: application/pkcs8', 'Content-Transfer-Encoding: base64'],
        ['Content-Type: application/pkcs7-mime; smime-type=certs-only', 'Content-Transfer-Encoding: base64'],
      ],
    )
    t.equal(reply.rawHeaders['Cache-Control'], 'no-store')
    t.equal(reply.rawHeaders['Content-Transfer-Encoding'], undefined, 'that is said of the parts')
    t.match(reply.rawHeaders['Muster-Renewal'], /^after=.*, before=/)
    const { leaf, key } = pairOf(reply)
    t.equal(leaf.subject, 'CN=kiosk-1')
    t.ok(leaf.checkPrivateKey(createPrivateKey(key)))
    t.match(await admin.showDevice('kiosk-1'), { state: 'active', fleet: 'kiosks' })
  })

  t.test('libest gets lines of 64 characters in both parts', async (t) => {
    const { der: csr } = await newRequest('kiosk-2')
    const reply = await ask(service, { csr, token: await newToken(), userAgent: 'Cisco libest client 1.0' })
    const base64 = reply.text.split(/\r\n/).filter((line) => /^[A-Za-z0-9+/=\n]{60,}$/.test(line))
    t.equal(base64.length, 2)
    for (const text of base64)
      t.ok(
        text
          .trimEnd()
          .split('\n')
          .every((line) => line.length <= 64),
      )
    t.ok(pairOf(reply).leaf)
  })

  t.test('the key and the signature of the request are not looked at', async (t) => {
    const others: Record<string, Buffer> = {
      'a signature of zeros': craftCsr({ signature: Buffer.alloc(64) }),
      'an empty signature': craftCsr({ signature: Buffer.alloc(0) }),
      'a key of another type': craftCsr({ key: KEY_MAKERS['ML-DSA-44']() }),
      'a short RSA key': craftCsr({ spki: Buffer.from('300d06092a864886f70d0101010500', 'hex') }),
      'the key of the CA': craftCsr({
        spki: new X509Certificate(service.root).publicKey.export({ type: 'spki', format: 'der' }),
      }),
    }
    for (const [what, csr] of Object.entries(others)) {
      await admin.createBatch({
        id: sha256Hex(what).slice(0, 8).replace(/^/, 'b'),
        fleet: 'kiosks',
        naming: 'assigned',
      })
      const token = await newToken({ batch: `b${sha256Hex(what).slice(0, 8)}` })
      const reply = await ask(service, { csr, token })
      t.equal(reply.status, 200, `${what}: ${reply.text}`)
      const { leaf, key } = pairOf(reply)
      t.ok(leaf.checkPrivateKey(createPrivateKey(key)), what)
      t.equal(leaf.publicKey.asymmetricKeyType, 'ec')
    }
  })

  t.test('its names are checked as ever', async (t) => {
    const token = await newToken()
    const wrong: Record<string, [Buffer, number, RegExp]> = {
      'a foreign URI': [
        (await newRequest('kiosk-3', ['spiffe://muster.local/device/kiosk-4'])).der,
        422,
        /^R-CSR-SUBJECT/,
      ],
      'no name': [(await newRequest()).der, 422, /^R-CSR-SUBJECT/],
      'not DER': [Buffer.from('nonsense'), 400, /^R-CSR-MALFORMED/],
      'a nest of sequences': [Buffer.alloc(4000, 0x30), 400, /^R-CSR-MALFORMED/],
      nothing: [Buffer.alloc(0), 400, /^R-CSR-MALFORMED/],
      'CA:TRUE': [
        craftCsr({
          extensions: [sequence(oid(OID.basicConstraints), octetString(Buffer.from('30030101ff', 'hex')))],
        }),
        422,
        /^R-CSR-SUBJECT/,
      ],
    }
    for (const [what, [csr, status, text]] of Object.entries(wrong)) {
      t.match(await ask(service, { csr, token }), { status, text }, what)
    }
    t.equal(
      (await admin.listTokens('kiosks-1')).filter(({ used }) => used === 0).length,
      1,
      'no use is spent',
    )
  })

  t.test('a key that is to be encrypted is refused by name', async (t) => {
    const token = await newToken()
    for (const name of ['decryptKeyId', 'asymmDecryptKeyId'] as const) {
      const asks = sequence(oid(OID[name]), setOf(octetString(Buffer.from('key-1'))))
      const csr = craftCsr({ attributes: explicit(0, asks) })
      t.match(await ask(service, { csr, token }), {
        status: 403,
        text: new RegExp(`^R-SERVER-KEY: .*${name}`),
      })
      const bare = craftCsr({ attributes: explicit(0, sequence(oid(OID[name]), element(0x31))) })
      t.match(await ask(service, { csr: bare, token }), { status: 403, text: /^R-SERVER-KEY/ })
    }
  })

  t.test('is off in every fleet that does not allow it', async (t) => {
    const { token } = await admin.createToken({ batch: 'usual', uses: 1 })
    const { der: csr } = await newRequest('usual-1')
    t.match(await ask(service, { csr, token }), { status: 403, text: /^R-SERVER-KEY/ })
    t.match(await ask(service, { csr, token, label: 'usual' }), { status: 403, text: /^R-SERVER-KEY/ })
    t.match(
      await ask(service, { csr, token, label: 'kiosks-1' }),
      { status: 403, text: /^R-SERVER-KEY/ },
      'a label grants nothing',
    )
    const device = await enrollDevice(service, { id: 'usual-2' })
    const own = (await newRequest('usual-2', ['spiffe://muster.local/device/usual-2'])).der
    t.match(await ask(service, { csr: own, pair: device }), { status: 403, text: /^R-SERVER-KEY/ })
    t.match(
      (await admin.listTokens('usual')).map(({ used }) => used),
      [0],
    )
  })

  t.test('a label must be that of the token, and a token is needed', async (t) => {
    const token = await newToken()
    const { der: csr } = await newRequest('kiosk-5')
    t.match(await ask(service, { csr, token, label: 'usual' }), { status: 403, text: /^R-TOKEN-BATCH/ })
    const nobody = await ask(service, { csr })
    t.match(nobody, { status: 401, text: /^R-NOCERT/ })
    t.equal(nobody.rawHeaders['WWW-Authenticate'], 'Basic realm="est"')
    t.match(await ask(service, { csr, token: 'mst_guess' }), { status: 401, text: /^R-TOKEN-UNKNOWN/ })
    t.equal((await ask(service, { csr, token, label: 'kiosks-1' })).status, 200)
  })

  t.test('repeated, it gives another key on the same use; the first certificate is revoked', async (t) => {
    const token = await newToken()
    const { der: csr } = await newRequest('kiosk-6')
    const first = pairOf(await ask(service, { csr, token }))
    const second = pairOf(await ask(service, { csr, token }))
    t.notOk(first.der.equals(second.der))
    const { certificates } = await admin.showDevice('kiosk-6')
    t.match(certificates, [{ state: 'issued' }, { state: 'revoked', reason: 'superseded' }])
    const body = (await newRequest('kiosk-6', ['spiffe://muster.local/device/kiosk-6'])).der
    t.match(await ask(service, { csr: body, pair: first }), { status: 403, text: /^R-REVOKED/ })
    await ask(service, { csr, token })
    t.match(await ask(service, { csr, token }), { status: 409, text: /^R-SUCCESSORS/ })
  })

  t.test('rekeys with the certificate of the device, under its names alone', async (t) => {
    const { der: csr } = await newRequest('kiosk-7')
    const first = pairOf(await ask(service, { csr, token: await newToken() }))
    const uri = (id: string) => [`spiffe://muster.local/device/${id}`]
    const foreign = (await newRequest('kiosk-8', uri('kiosk-8'))).der
    t.match(await ask(service, { csr: foreign, pair: first }), { status: 422, text: /^R-CSR-SUBJECT/ })
    const own = (await newRequest('kiosk-7', uri('kiosk-7'))).der
    const next = await ask(service, { csr: own, pair: first })
    t.equal(next.status, 200, next.text)
    const second = pairOf(next)
    t.ok(second.leaf.checkPrivateKey(createPrivateKey(second.key)))
    t.notOk(second.der.equals(first.der))
    t.equal((await ask(service, { csr: own, pair: second })).status, 200, 'the new pair works')
  })

  t.test('202 while an operator has to approve, and the key comes with the answer afterwards', async (t) => {
    const token = await newToken({ approval: true })
    const { der: csr } = await newRequest('kiosk-9')
    const asked = await ask(service, { csr, token })
    t.match(asked, { status: 202, text: /^R-PENDING/ })
    t.equal(asked.rawHeaders['Retry-After'], '30')
    const spki = (await admin.showDevice('kiosk-9')).application?.spki ?? ''
    await admin.approveDevice('kiosk-9', { spki })
    const { leaf, key } = pairOf(await ask(service, { csr, token }))
    t.ok(leaf.checkPrivateKey(createPrivateKey(key)))
    t.not(
      sha256Hex(leaf.publicKey.export({ type: 'spki', format: 'der' })),
      spki,
      'not the key of the request',
    )
  })

  t.test(
    'the key is of the first type of the profile, and RSA only where nothing else will do',
    async (t) => {
      const kinds = {
        ed25519: ['Ed25519', 'P-256'],
        'ml-dsa-65': ['ML-DSA-65'],
        ec: ['RSA', 'P-384'],
        rsa: ['RSA'],
      } as const
      for (const [kind, keys] of Object.entries(kinds)) {
        await admin.createFleet({ id: `fleet-${kind}`, profile: { serverKeys: true, keys: [...keys] } })
        await admin.createBatch({ id: `batch-${kind}`, fleet: `fleet-${kind}` })
        const reply = await ask(service, {
          csr: (await newRequest(`kiosk-${kind}`)).der,
          token: await newToken({ batch: `batch-${kind}` }),
        })
        t.equal(reply.status, 200, reply.text)
        const { leaf, key } = pairOf(reply)
        t.equal(leaf.publicKey.asymmetricKeyType, kind)
        t.ok(createPublicKey(key).equals(leaf.publicKey))
      }
    },
  )

  t.test('the key is neither stored nor logged', async (t) => {
    const { der: csr } = await newRequest('kiosk-10')
    const { der } = pairOf(await ask(service, { csr, token: await newToken() }))
    const scalar = der.subarray(36, 68) // of a P-256 key in PKCS#8
    t.ok(
      createPrivateKey({ key: der, format: 'der', type: 'pkcs8' }).export({ format: 'jwk' }).d ===
        scalar.toString('base64url'),
    )
    const forms = [
      scalar,
      ...(['hex', 'base64', 'base64url'] as const).map((form) => Buffer.from(scalar.toString(form))),
    ]
    const places = [...written(service.data), Buffer.from(service.logged.join(''))]
    t.ok(
      places.some((octets) => octets.includes('kiosk-10')),
      'what is written can be searched',
    )
    for (const form of forms) t.notOk(places.some((octets) => octets.includes(form)))
    t.notOk(Buffer.from(service.logged.join('')).includes(der.toString('base64').slice(0, 100)))
  })

  t.test('no octets in place of a request make anything but a refusal', async () => {
    const token = await newToken()
    const whole = (await newRequest('kiosk-11')).der
    const damage = fc.tuple(fc.nat(whole.length - 1), fc.integer({ min: 1, max: 255 }))
    await fc.assert(
      fc.asyncProperty(damage, async ([at, by]) => {
        const csr = Buffer.from(whole)
        csr[at] = (csr[at] ?? 0) ^ by
        const { status } = await ask(service, { csr, token })
        return [200, 400, 401, 403, 409, 422, 429].includes(status)
      }),
      { numRuns: 60 },
    )
  })
})

t.test('no octets of a key or certificate break out of their part', async (t) => {
  const octets = fc.uint8Array({ minLength: 1, maxLength: 300 })
  const certificate = craftCsr({ key: generateKey() })
  fc.assert(
    fc.property(octets, fc.constantFrom(undefined, 'libest'), (privateKey, userAgent) => {
      const boundary = 'ab'.repeat(16)
      const { type, body } = writeKeyAndCertificate({ privateKey, certificate }, { boundary, userAgent })
      const parts = partsOf({ text: body, rawHeaders: { 'Content-Type': type } })
      return parts.length === 2 && Buffer.from(privateKey).equals(parts[0]?.der ?? Buffer.alloc(0))
    }),
  )
  t.pass()
})
