import { createPublicKey, X509Certificate } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { sha256Hex, spkiDer } from '#shared/pki/keys'
import { run } from '../../operator/cli.ts'
import { enrollDevice, newRequest, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'

/** `muster <args> --json` against the plane; the document, or null and the status. */
async function muster(service: RunningEnrollment, ...args: string[]) {
  const outs: string[] = []
  const none = async () => {}
  const terminal = {
    out: (text: string) => void outs.push(text),
    err: () => {},
    canAsk: false,
    isScreen: false,
    ask: async () => '',
    paint: (_: unknown, text: string) => text,
  }
  const deps = { bin: '', terminal, enrollment: none, broker: none, sim: none, bench: none }
  const status = await run(['--data', service.config.layout.root, '--json', ...args], deps)
  return { status, document: outs.length === 0 ? null : JSON.parse(outs.join('\n')) }
}

t.test('a compromised key is put on the list as hash, list, certificate or public key', async (t) => {
  const service = await startEnrollment(t)
  const device = await enrollDevice(service, { id: 'd1' })
  const file = (name: string, text: string) => {
    const path = join(service.data, name)
    writeFileSync(path, text)
    return path
  }
  const [a, b] = [sha256Hex('a'), sha256Hex('b')]
  t.match(await muster(service, 'key', 'compromise', a.toUpperCase()), {
    status: 0,
    document: { added: 1, devices: [] },
  })
  const list = file('keys.txt', `# found on the web\n${a}\r\n\n  ${b} # mine\n`)
  t.match((await muster(service, 'key', 'compromise', list)).document, { added: 1, known: 1 })
  const crt = await muster(service, 'key', 'compromise', file('d1.crt', device.certificate))
  t.match(crt.document, { added: 1, devices: ['d1'] })
  const pem = new X509Certificate(device.certificate).publicKey.export({ type: 'spki', format: 'pem' })
  t.match((await muster(service, 'key', 'compromise', file('d1.pub', String(pem)))).document, { known: 1 })
  const { document } = await muster(service, 'key', 'list')
  const own = sha256Hex(spkiDer(createPublicKey(pem)))
  t.strictSame(new Set(document.keys.map(({ key }: { key: string }) => key)), new Set([a, b, own]))

  for (const [name, text] of Object.entries({
    empty: '',
    short: 'abcd',
    html: '<html>',
    armour: '-----BEGIN X-----',
  })) {
    const { status } = await muster(service, 'key', 'compromise', file(name, text))
    t.equal(status, 2, name)
  }
  t.equal((await muster(service, 'key', 'compromise', join(service.data, 'none'))).status, 2)
})

t.test('a device with a compromised key is refused at enrollment and renewal, and told why', async (t) => {
  const service = await startEnrollment(t)
  const device = await enrollDevice(service, { id: 'd1' })
  const next = await newRequest('d2')
  const nextKey = sha256Hex(spkiDer(createPublicKey(next.key)))
  await service.admin.compromiseKeys([nextKey])
  const { token } = await service.admin.createToken({ batch: 'lab', uses: 1 })
  const enrolled = await service.client().send('POST', '/v1/enroll', { json: { token, csr: next.csr } })
  const problem = { code: 'R-CSR-KEY', evidence: { why: 'it is compromised', key: nextKey } }
  t.match({ status: enrolled.status, ...JSON.parse(enrolled.text) }, { status: 422, ...problem })
  const json = { csr: (await newRequest('d1')).csr }
  t.equal((await service.client(device).send('POST', '/v1/renew', { json })).status, 200)
  await service.admin.compromiseKeys([sha256Hex(spkiDer(createPublicKey(device.key)))])
  const again = { csr: (await newRequest('d1')).csr }
  const renewed = await service.client(device).send('POST', '/v1/renew', { json: again })
  t.match({ status: renewed.status, ...JSON.parse(renewed.text) }, { status: 422, code: 'R-CSR-KEY' })
})

t.test('a list that is no list of keys is refused', async (t) => {
  const service = await startEnrollment(t)
  const good = sha256Hex('a')
  const many = Array.from({ length: 901 }, (_, i) => sha256Hex(String(i)))
  for (const keys of [[], ['x'], [good.toUpperCase()], [`${good}0`], many, good]) {
    const asked = service.admin.compromiseKeys(keys as string[])
    await t.rejects(asked, { code: /^(invalid_request|too_large)$/ }, String(keys).slice(0, 30))
  }
  t.match(await service.admin.compromiseKeys([good, good]), { added: 1, known: 0 })
})
